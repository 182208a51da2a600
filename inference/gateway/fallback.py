"""When a request that failed at one choice may go to the next of its chain, and what is said when all have failed.

Never for what is the client's own mistake or limit, and never once the client has a byte of an answer: what would
follow would be another model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmserve.errors import (
    AllAttemptsFailed,
    ContextLengthExceeded,
    DeadlineExceeded,
    InsufficientQuota,
    MmserveError,
    QueueFull,
)
from routing.core.records import AttemptRecord
from routing.core.route import Cause

# What a flight asks before it fails: True, and the request goes on elsewhere.
Mover = Callable[[MmserveError], bool]


class NoFirstToken(DeadlineExceeded):
    """The attempt is slow, and may yet be answered."""


def stay(_error: MmserveError) -> bool:
    """Nobody moves it."""
    return False


def cause_of(error: MmserveError) -> Cause | None:
    """Why the next choice may be tried; None: it would be wrong there as well."""
    match error:
        case QueueFull():
            return Cause.OVERLOAD
        case InsufficientQuota():
            return Cause.BUDGET
        case ContextLengthExceeded():
            return Cause.CONTEXT
        case DeadlineExceeded():
            return Cause.TIMEOUT
    return Cause.ERROR if error.status >= 500 else None


def exhausted(attempts: Sequence[AttemptRecord], last: MmserveError) -> MmserveError:
    """The one error when all is spent; of a single attempt, its own."""
    if len(attempts) < 2:
        return last
    tried = "; ".join(f"{one.served_id}: {one.why}" for one in attempts)
    message = f"All {len(attempts)} choices failed. {tried}"
    for kind in (ContextLengthExceeded, InsufficientQuota):
        # What no choice could change is the client's to know as what it is.
        if all(one.outcome == kind.code for one in attempts):
            return kind(message, param=last.param)
    return AllAttemptsFailed(message, param="model")
