"""The end of a replica that was given up while it lived: its node was not heard of, and its work is done elsewhere."""

from __future__ import annotations

import logging
import os
from typing import NoReturn

import psutil

EXIT_FENCED = 71

logger = logging.getLogger(__name__)


def leave(replica: str) -> NoReturn:
    """End this process and its children now: whatever it would still say or book is refused anyway."""
    logger.error("replica %s was given up while it lived: it ends", replica)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(EXIT_FENCED)
