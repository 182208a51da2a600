"""Which deployment serves a request, and why the others do not. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from routing.core.table import DeploymentEntry, RoutingTable

NO_REPLICA = "no replica is ready"
LOADING = "its replica is still loading"
NO_CHAT_TEMPLATE = "the model has no chat template"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What a decision needs to know of a request."""

    decision_id: str
    model: str
    chat: bool = False
    prompt_tokens: int | None = None  # known only when the prompt came as tokens
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentLoad:
    """Live state of one deployment's replicas together; rates are per second."""

    ready: int = 0
    loading: int = 0
    running: int = 0
    waiting: int = 0
    max_streams: int = 0
    jobs_per_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft_s: float = 0.0
    kv_usage: float = 0.0
    context_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One deployment that was looked at; ``reasons`` says why it is not eligible."""

    id: str
    eligible: bool
    reasons: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome: ``chain`` is the first choice, then the fallbacks, in order."""

    id: str
    revision: int
    served_id: str
    chosen: str | None
    chain: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def decide(table: RoutingTable, live: Mapping[str, DeploymentLoad], request: RequestFacts) -> Decision:
    """Order the deployments of the version by how full they are; ModelNotFound for an unknown id.

    ``load`` is the requests in hand per stream that the ready replicas can run at once: 1.0 is a full batch.
    """
    version = table.resolve(request.model)
    judged = [_judge(table.deployments[key], live.get(key), request) for key in version.deployments]
    eligible = sorted((one for one in judged if one.eligible), key=lambda one: (one.scores["load"], one.id))
    chain = tuple(one.id for one in eligible)
    return Decision(
        id=request.decision_id,
        revision=table.revision,
        served_id=version.served_id,
        chosen=chain[0] if chain else None,
        chain=chain,
        candidates=tuple(judged),
    )


def _judge(entry: DeploymentEntry, load: DeploymentLoad | None, request: RequestFacts) -> Candidate:
    load = load or DeploymentLoad()
    reasons = []
    if not load.ready:
        reasons.append(LOADING if load.loading else NO_REPLICA)
    if request.chat and not entry.has_chat_template:
        reasons.append(NO_CHAT_TEMPLATE)
    context = entry.limits.context_length or load.context_length
    needed = (request.prompt_tokens or 0) + (request.max_tokens or 0)
    if context and needed > context:
        reasons.append(f"needs {needed} tokens of context, has {context}")
    return Candidate(
        id=entry.id,
        eligible=not reasons,
        reasons=tuple(reasons),
        scores={
            "load": (load.running + load.waiting) / max(1, load.max_streams),
            "ttft_s": load.ttft_s,
            "kv_usage": load.kv_usage,
        },
    )
