"""What fits nowhere, whoever sleeps: it is refused at once, with figures, rather than waited for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from inference.capacity.placement import DeviceRoom, Need, place
from inference.memory import device_rooms, need_of
from inference.models import Deployment
from mmserve.errors import InvalidRequest
from registry.revision import bump

log = logging.getLogger(__name__)

NOWHERE = "it fits nowhere"
# What decides how much memory a replica takes; named in this order.
SIZES = (
    "kv_cache_bytes",
    "max_streams",
    "max_batched_tokens",
    "context_length",
    "quantization",
    "dtype",
    "tensor_parallel",
    "speculation",
    "speculative_tokens",
    "draft",
)


def why_nowhere(need: Need, rooms: Sequence[DeviceRoom]) -> str:
    """Why it could be on none of these devices, were their nodes up; "" if it could, or none is known."""
    at_best = [replace(room, alive=True, used_by_others_bytes=0) for room in rooms]
    return "; ".join(place(need, at_best).reasons) if at_best else ""


def check_size(stored: Deployment, draft: Deployment, changed: Collection[str]) -> None:
    """Refuse changed options with which no known device could have it, even if it was empty.

    What fits nowhere as it is stored may come nearer in steps.
    """
    fields = [name for name in SIZES if name in changed]
    rooms = [replace(room, reserved_bytes=0) for room in device_rooms()] if fields else []
    if not rooms or not draft.version.facts or why_nowhere(need_of(stored, rooms), rooms):
        return
    if why := why_nowhere(need_of(draft, rooms), rooms):
        raise InvalidRequest(f"{fields[0]}: {NOWHERE}: {why}", param=fields[0])


def refuse(deployment: Deployment, why: str) -> None:
    """Nobody waits for it: the gateways refuse its requests at once, with the figures."""
    failure = f"{NOWHERE}: {why}"
    if Deployment.objects.filter(pk=deployment.pk, failure="").update(failure=failure):
        deployment.failure = failure
        log.error("%s: %s", deployment.name, failure)
        bump("deployment.failed", deployment.name, "controller", failure)


def forgive() -> None:
    """Take back the refusal of what has a place by now: a larger device came, or its options were changed."""
    rows = Deployment.objects.filter(failure__startswith=NOWHERE).select_related("version__model")
    rooms = device_rooms(could_sleep=True) if rows else []
    for row in rows:
        if not why_nowhere(need_of(row, rooms), rooms):
            Deployment.objects.filter(pk=row.pk, failure=row.failure).update(failure="")
            bump("deployment.recovered", row.name, "controller", "there is a place for it")
