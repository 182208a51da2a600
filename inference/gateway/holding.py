"""Requests for a model that is not up: which of them wait for it, for how long, and in which class."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from inference.gateway.auth import KeyGrant
from inference.gateway.live import LiveState
from inference.gateway.plan import Plan
from inference.protocol import PRIORITIES, Outlook
from mmserve.errors import PermissionDenied, QueueFull, Unavailable
from routing.core.table import DeploymentEntry

# What a client is told to wait for a model that was never loaded, so that nobody knows.
UNKNOWN_LOAD_S = 10.0


@dataclass(frozen=True, slots=True)
class Hold:
    """A request that has to wait until its model is up; ``eta_s`` is None if that was never measured."""

    deployment: DeploymentEntry
    eta_s: float | None

    @property
    def retry_after_s(self) -> float:
        """When it makes sense to ask again."""
        return UNKNOWN_LOAD_S if self.eta_s is None else self.eta_s

    def too_late(self, deadline_s: float) -> Unavailable:
        """The refusal of a request that could not be answered before its deadline."""
        return Unavailable(
            f"{self.deployment.served_id} is not up, and is expected in {self.retry_after_s:.0f} s: longer than "
            f"this request may take ({deadline_s:g} s).",
            param="model",
            code="model_loading",
            retry_after_s=self.retry_after_s,
        )

    def full(self, waiting: int) -> QueueFull:
        """The refusal of one more than may wait."""
        when = (
            "nobody knows yet how long it takes" if self.eta_s is None else f"expected in {self.eta_s:.0f} s"
        )
        return QueueFull(
            f"{self.deployment.served_id} is not up ({when}): {waiting} requests wait for it, "
            f"{self.deployment.limits.hold_bound} may.",
            retry_after_s=self.retry_after_s,
        )


def deadline_s_of(plan: Plan, deployment: DeploymentEntry) -> float:
    """A request's whole life: what it asks for, within what its deployment allows."""
    most = deployment.limits.default_deadline_s
    return most if plan.deadline_s is None else min(most, plan.deadline_s)


def hold_of(deployment: DeploymentEntry, live: LiveState) -> Hold:
    """The hold of a request for a deployment that is not up, by what the controller told last."""
    outlook = live.outlook(deployment.id, time.monotonic())
    return Hold(deployment, outlook.eta_s if outlook else deployment.load_s)


def told(entry: DeploymentEntry, live: LiveState, now: float, waited_s: float) -> dict[str, Any]:
    """What a waiting request is told, if it wants to know: for what it waits, how far that is, and how much longer."""
    load = live.loads.get(entry.id)
    if load is not None and load.ready:
        per_s = load.jobs_per_s
        eta_s = load.waiting / per_s if per_s > 0 else None
        found = Outlook(status="queued", stage="waiting for a place in the batch", eta_s=eta_s)
    else:
        usual_s = None if entry.load_s is None else max(0.0, entry.load_s - waited_s)
        asleep = Outlook(status="asleep", stage="waiting for memory or a node", eta_s=usual_s)
        found = live.outlook(entry.id, now) or asleep
        beat = live.loading(entry.id)
        if beat is not None:  # it speaks for itself, and sooner
            found.status, found.stage = "loading", beat.stage or "loading"
            found.done_bytes, found.total_bytes = beat.done_bytes, beat.total_bytes
    return {
        "status": found.status,
        "stage": found.stage,
        "waited_s": round(waited_s, 1),
        "eta_s": None if found.eta_s is None else round(found.eta_s, 1),
        "done_bytes": found.done_bytes,
        "total_bytes": found.total_bytes,
    }


def class_of(plan: Plan, grant: KeyGrant) -> str:
    """The queue's class: what the request asks for, if its key may; else normal, or what its key is bound to."""
    best = PRIORITIES.index(grant.priority)
    if plan.priority is None:
        return PRIORITIES[max(best, PRIORITIES.index("normal"))]
    if PRIORITIES.index(plan.priority) < best:
        raise PermissionDenied(
            f"The access key {grant.name!r} may ask for priority {grant.priority!r} at most, "
            f"not {plan.priority!r}.",
            param="priority",
            code="priority_not_allowed",
        )
    return plan.priority
