"""Requests for a model that is not up: which of them wait for it, for how long, and in which class."""

from __future__ import annotations

from dataclasses import dataclass

from inference.gateway.auth import KeyGrant
from inference.gateway.plan import Plan
from inference.protocol import PRIORITIES
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
