"""What is written down of a request once it is over: what it used, and how it was decided. Never a prompt.

Both are JSON in Redis, and so is what a process says of its circuit breakers.
A field that is added has a default, so that an older record is still read.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec

from routing.core.breaker import State
from routing.core.decision import Explanation, RequestFacts

# Stream with a field ``record`` (a UsageRecord); read in order, and rolled up into rows exactly once.
USAGE_STREAM = "mmserve:usage"
# What may wait there. Much more would be Redis' memory; a stream that long turns records away.
USAGE_MOST = 500_000
# How many records a full stream has turned away: usage that nobody will ever count.
USAGE_LOST_KEY = "mmserve:usage:lost"
# Zset of the decisions that are kept, by when they were written; each in a string of its own.
DECISIONS_KEY = "mmserve:decisions"

# Hash of a BreakerReport by gateway process.
BREAKERS_KEY = "mmserve:breakers"
# A process that has not reported for this long is gone.
BREAKERS_STALE_S = 10.0


def decision_key(decision_id: str) -> str:
    """Redis string with a DecisionRecord."""
    return f"mmserve:decision:{decision_id}"


def shadow_key(experiment: str, at: float) -> str:
    """Redis counter of the tokens that a shadow experiment's copies took on the day (UTC) of ``at``, in unix time."""
    return f"mmserve:shadow:{experiment}:{time.strftime('%Y%m%d', time.gmtime(at))}"


class BreakerReport(msgspec.Struct, kw_only=True):
    """The circuit breakers of one gateway process, of the deployments that it has sent something to."""

    at: float  # unix time
    states: dict[str, tuple[str, State]]  # deployment to what it serves and the breaker's state


class Spent(NamedTuple):
    """What the rows say of a budget's present period, and the last record of the stream that is in them."""

    nano: int
    last_id: str


class UsageRecord(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What one answered request used and cost; ``outcome`` is "completed", "cancelled" or an error's code.

    Refused requests are counted together: ``count`` of them, which used nothing. Times are in seconds.
    """

    request_id: str
    key: str  # the access key's id
    model: str  # as the client named it
    served_id: str
    deployment: str
    endpoint: str
    outcome: str
    status: int
    at: float
    stream: bool
    team: str = ""
    route: str = ""
    # Experiment to arm. The arm stays after a fallback: what was served is in ``served_id``.
    assignments: dict[str, str] = {}
    # The experiment's unit in each, hashed: "phase.hexadecimal number", what statistics are clustered by.
    units: dict[str, str] = {}
    refusal: bool = False  # the model declined; only looked for in experiments
    count: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    attempts: int = 1
    fallbacks: int = 0  # how many choices were given up for another; one that was passed over was none
    queued_s: float = 0.0
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    e2e_s: float = 0.0
    engine_s: float = 0.0  # share of the engine's time
    cost_nano: int = 0  # all of it
    other_cost_nano: int = 0  # the part of it for attempts that gave way to others: hedges, fallbacks


# Refusals that say that what was chosen could not serve, or at its price could not be paid, though they are no 5xx.
ARM_FAILURES = ("queue_full", "context_length_exceeded", "insufficient_quota")


def counts_for_its_arm(record: UsageRecord) -> bool:
    """Whether a refusal is a failure of what was chosen, and not of the client or of its key's limits."""
    return record.status >= 500 or record.outcome in ARM_FAILURES


class AttemptRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One choice that was tried, and why it ended."""

    deployment: str
    served_id: str
    outcome: str
    after_s: float = 0.0  # since the request began
    replica: str = ""
    why: str = ""


class DecisionRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How one request was decided and what came of it.

    ``facts`` are the core's own: ``decide(table, live, facts)`` decides it again.
    """

    id: str
    at: float
    key: str
    team: str = ""
    endpoint: str = ""
    facts: RequestFacts
    decision: Explanation
    candidates_left_out: int = 0  # beyond MAX_CANDIDATES
    assignments: dict[str, str] = {}
    attempts: list[AttemptRecord] = []
    # What was expected when it was decided; None where nothing was.
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    predicted_cost_nano: int | None = None
    # What came of it.
    outcome: str = ""
    status: int = 0
    served_id: str = ""
    deployment: str = ""
    replica: str = ""
    # The replica that it preferred there, and why that one or none; both empty where there was no choice.
    preferred: str = ""
    preferred_why: str = ""
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    e2e_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0
