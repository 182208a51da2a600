"""A route: a public model id with candidates, a policy that orders them, and constraints that filter them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

AUTO = "auto"


class Policy(StrEnum):
    """How eligible candidates are ordered; routing.core.policies has the figures."""

    WEIGHTED = "weighted"  # by share, drawn by a keyed hash of the request's id
    LEAST_COST = "least_cost"  # the cheapest for this request
    LOWEST_LATENCY = "lowest_latency"  # the soonest to be done, as predicted
    LEAST_LOADED = "least_loaded"  # the emptiest, a ready one before one that must load
    BALANCED = "balanced"  # normalised weights over quality, cost, latency and load
    PRIORITY = "priority"  # in the order of the list


class Cause(StrEnum):
    """Why a request goes to the next choice of its chain. A client's own mistake is none."""

    ERROR = "error"  # the engine failed or was lost
    TIMEOUT = "timeout"  # no first token in time
    OVERLOAD = "overload"  # the queue is full
    CONTEXT = "context"  # the engine counted more tokens than it takes
    BREAKER = "breaker"  # its circuit breaker is open
    BUDGET = "budget"  # a budget cannot pay for it there


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What ``balanced`` weighs; only the proportions matter."""

    quality: float = 0.4
    cost: float = 0.2
    latency: float = 0.3
    load: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a candidate must keep; None asks for nothing.

    ``require`` holds words: capabilities (``chat``, ``json``) and tags (``region=eu``, ``language=de``).
    """

    require: tuple[str, ...] = ()
    max_cost_usd: float | None = None  # of one request, as estimated
    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    min_context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a client asks of the choice for one request; it can only tighten what the route says."""

    require: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()  # words, or ids of models and versions: the more match, the earlier
    max_cost_usd: float | None = None
    max_ttft_s: float | None = None
    no_fallback: bool = False


NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateEntry:
    """One line of a route: ``target`` is ``name``, ``name@version`` or ``name@alias``."""

    target: str
    weight: float = 1.0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteEntry:
    """A route as it is configured; the order of the candidates is the one of ``priority``."""

    id: str
    candidates: tuple[CandidateEntry, ...]
    policy: Policy = Policy.WEIGHTED
    weights: Weights = field(default_factory=Weights)
    constraints: Constraints = field(default_factory=Constraints)
    description: str = ""
    enabled: bool = True
    fallback_on: frozenset[Cause] = frozenset(Cause)
    first_token_s: float | None = None  # without a token by then the next choice is tried
    hedge_share: float = 0.0  # of its requests that may have a second attempt beside a slow first one
