"""What routes are tried out against: the rows as they are, the replicas' last beats, the last decisions."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import msgspec
from redis import RedisError

from inference.beats import read_beats
from inference.loads import loads_of
from inference.models import ALIVE, Replica
from inference.notify import connection
from inference.snapshot import routing_table
from routing.core.facts import RequestFacts
from routing.core.records import DECISIONS_KEY, decision_key
from routing.situation import Judged, Situation

log = logging.getLogger(__name__)

# Read at once: a decision with many candidates is a large thing.
BATCH = 100
# Somebody waits for a page. Ten thousand decisions of a few candidates are read sooner.
MOST_READING_S = 2.0

Read = TypeVar("Read", bound=msgspec.Struct)


class _Asked(msgspec.Struct):
    """Of a DecisionRecord, what was asked: the rest of it is not made into objects."""

    facts: RequestFacts


class _Served(_Asked):
    """And who served it."""

    id: str
    served_id: str = ""


class Present:
    """routing.situation.Source over the database and Redis."""

    def now(self, decisions: int, model: str) -> Situation:
        """As it is now, with up to this many of the model id's last decisions; none of those while Redis is away."""
        table = routing_table()
        replicas = Replica.objects.filter(state__in=ALIVE).values_list("pk", flat=True)
        beats = read_beats(str(pk) for pk in replicas)
        kept = _kept(_ids(), _Asked, MOST_READING_S) if decisions else ()
        past = (one.facts for one in kept if one.facts.model == model)
        return Situation(
            table=table,
            live=table.columns(loads_of(beats.values())),
            decisions=list(islice(past, decisions)),
        )

    def judged(self, ids: Sequence[str]) -> list[Judged]:
        """Of the decisions with these ids, those that were made by a prompt's traits and answered."""
        return [
            Judged(id=record.id, served_id=record.served_id, traits=record.facts.traits)
            for record in _kept(ids, _Served)
            if record.facts.traits is not None and record.served_id
        ]


def _ids() -> list[str]:
    """Of all decisions that are kept, the newest first."""
    try:
        ids: list[bytes] = connection().zrevrange(DECISIONS_KEY, 0, -1)  # type: ignore[assignment]
        return [one.decode() for one in ids]
    except RedisError as error:
        log.warning("the last decisions cannot be read: %s", error)
        return []


def _kept(ids: Sequence[str], kind: type[Read], within_s: float = math.inf) -> Iterator[Read]:
    """Those that are still there; one that an older release wrote otherwise is passed over."""
    decode, until = msgspec.json.Decoder(kind).decode, time.monotonic() + within_s
    try:
        for start in range(0, len(ids), BATCH):
            if time.monotonic() > until:
                return
            for written in connection().mget([decision_key(one) for one in ids[start : start + BATCH]]):
                if written is None:
                    continue
                try:
                    yield decode(written)
                except msgspec.MsgspecError as error:
                    log.warning("a decision cannot be read: %s", error)
    except RedisError as error:
        log.warning("the last decisions cannot be read: %s", error)
