"""Waiting for what announces itself nowhere: a key in Redis, a field of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LOOK_S = 0.01


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Look until there is something, and return it."""
    async with asyncio.timeout(timeout_s):
        while not (found := condition()):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
    return found
