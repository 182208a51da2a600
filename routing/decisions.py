"""Reading back how requests were decided: one by its id, or the last ones, for pages, REST and replays."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import msgspec
import redis

from mmserve.errors import NotFound, Unavailable
from routing.connection import connection
from routing.core.cost import in_usd
from routing.core.records import DECISIONS_KEY, DecisionRecord, decision_key

log = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MOST = 10_000

_decode = msgspec.json.Decoder(DecisionRecord).decode


def find_decision(decision_id: str) -> DecisionRecord:
    """One decision; NotFound when it is not kept (any more)."""
    if ID.fullmatch(decision_id):
        try:
            raw: Any = connection().get(decision_key(decision_id))
        except redis.RedisError as error:
            raise Unavailable("Decisions cannot be read: Redis is away.", retry_after_s=1.0) from error
        found = next(iter(_read([raw])), None)
        if found is not None:
            return found
    raise NotFound(
        f"There is no decision {decision_id[:64]!r}. The last ones are kept for a day; of many requests a second, "
        "only a sample. A request is written down when it is over."
    )


def latest_decisions(count: int) -> list[DecisionRecord]:
    """The last ones, the newest first; fewer where fewer are kept, or an older release wrote them otherwise."""
    client = connection()
    try:
        ids: Any = client.zrevrange(DECISIONS_KEY, 0, min(count, MOST) - 1)
        raw: Any = client.mget([decision_key(one.decode()) for one in ids]) if ids else []
    except redis.RedisError as error:
        raise Unavailable("Decisions cannot be read: Redis is away.", retry_after_s=1.0) from error
    return list(_read(raw))


def as_json(record: DecisionRecord) -> dict[str, Any]:
    """As REST answers it: what was asked and decided, what was expected, what came of it."""
    decision = record.decision
    return {
        "id": record.id,
        "at": record.at,
        "key": record.key,
        "team": record.team or None,
        "endpoint": record.endpoint,
        "model": record.facts.model,
        "route": decision.route,
        "policy": decision.policy,
        "revision": decision.revision,
        "chosen": decision.chosen,
        "chain": [msgspec.to_builtins(link) for link in decision.chain],
        "candidates": [
            {
                "id": one.id,
                "model": one.served_id,
                "eligible": one.eligible,
                "reasons": list(one.reasons),
                "scores": dict(one.scores),
            }
            for one in decision.candidates
        ],
        "candidates_left_out": record.candidates_left_out,
        "assignments": record.assignments,
        "attempts": [msgspec.to_builtins(one) for one in record.attempts],
        "request": msgspec.to_builtins(record.facts),
        "predicted": {
            "ttft_s": record.predicted_ttft_s,
            "tpot_s": record.predicted_tpot_s,
            "most_cost_usd": None
            if record.predicted_cost_nano is None
            else in_usd(record.predicted_cost_nano),
        },
        "outcome": {
            "outcome": record.outcome,
            "status": record.status,
            "served": record.served_id,
            "deployment": record.deployment or None,
            "replica": record.replica or None,
            "preferred_replica": record.preferred or None,
            "preferred_why": record.preferred_why or None,
            "ttft_s": record.ttft_s,
            "tpot_s": record.tpot_s,
            "e2e_s": record.e2e_s,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "cost_usd": in_usd(record.cost_nano),
        },
    }


def _read(raw: Iterable[bytes | None]) -> Iterable[DecisionRecord]:
    for one in raw:
        if one is not None:
            try:
                yield _decode(one)
            except msgspec.MsgspecError as error:
                log.warning("a decision cannot be read: %s", error)
