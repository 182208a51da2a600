"""What routes are tried out against: the rows as they are, the replicas' last beats, the last decisions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import msgspec
from redis import RedisError

from inference.beats import read_beats
from inference.loads import loads_of
from inference.models import ALIVE, Replica
from inference.notify import connection
from inference.snapshot import routing_table
from routing.core.records import DECISIONS_KEY, DecisionRecord, decision_key
from routing.situation import Judged, Situation

log = logging.getLogger(__name__)

# Read at once: a decision with many candidates is a large thing.
BATCH = 100


class Present:
    """routing.situation.Source over the database and Redis."""

    def now(self, decisions: int) -> Situation:
        """As it is now, with up to this many of the last decisions; none of those while Redis is away."""
        table = routing_table()
        replicas = Replica.objects.filter(state__in=ALIVE).values_list("pk", flat=True)
        beats = read_beats(str(pk) for pk in replicas)
        return Situation(
            table=table,
            live=table.columns(loads_of(beats.values())),
            decisions=[record.facts for record in _kept(_last_ids(decisions))] if decisions else (),
        )

    def judged(self, ids: Sequence[str]) -> list[Judged]:
        """Of the decisions with these ids, those that were made by a prompt's traits and answered."""
        return [
            Judged(id=record.id, served_id=record.served_id, traits=record.facts.traits)
            for record in _kept(ids)
            if record.facts.traits is not None and record.served_id
        ]


def _last_ids(most: int) -> list[str]:
    """The newest first."""
    try:
        ids: list[bytes] = connection().zrevrange(DECISIONS_KEY, 0, most - 1)  # type: ignore[assignment]
        return [one.decode() for one in ids]
    except RedisError as error:
        log.warning("the last decisions cannot be read: %s", error)
        return []


def _kept(ids: Sequence[str]) -> Iterator[DecisionRecord]:
    try:
        for start in range(0, len(ids), BATCH):
            for written in connection().mget([decision_key(one) for one in ids[start : start + BATCH]]):
                if written is not None:
                    yield msgspec.json.decode(written, type=DecisionRecord)
    except (RedisError, msgspec.MsgspecError) as error:
        log.warning("the last decisions cannot be read: %s", error)
