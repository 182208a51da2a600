"""Flights for unit tests."""

from __future__ import annotations

import time
from typing import Any

from inference.gateway.auth import KeyGrant
from inference.gateway.flight import Flight
from inference.gateway.plan import Plan
from inference.protocol import Sampling
from routing.core.table import DeploymentEntry

GRANT = KeyGrant(id="k", name="tests", scopes=frozenset({"infer"}))
ECHO = DeploymentEntry(id="echo", served_id="m@1")


def plan(endpoint: Any = "chat.completions", *, sampling: Sampling | None = None, **more: Any) -> Plan:
    shape: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "hi"}]}
        if endpoint == "chat.completions"
        else {"prompts": ["hi"]}
    )
    return Plan(
        endpoint=endpoint,
        model="m",
        sampling=sampling or Sampling(),
        **{"stream": True, "include_usage": False, "want_logprobs": False, **shape, **more},
    )


def flight(request_id: str = "r", of: Plan | None = None) -> Flight:
    of = of or plan()
    return Flight(
        of.request(request_id, "reply", time.time() + 60, "normal"),
        of,
        GRANT,
        ECHO,
        deadline_at=time.monotonic() + 60,
    )
