"""The replicas' last beats, for pages and REST answers; the gateway hears them itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
from redis import RedisError

from inference.notify import connection
from inference.protocol import ASKED_KEY, ReplicaBeat, beat_key

log = logging.getLogger(__name__)


def read_beats(replicas: Iterable[str]) -> dict[str, ReplicaBeat]:
    """The beats of these replicas that are heard of; none while Redis is away."""
    ids = list(replicas)
    if not ids:
        return {}
    try:
        found = connection().mget([beat_key(replica) for replica in ids])
        return {
            replica: msgspec.json.decode(beat, type=ReplicaBeat)
            for replica, beat in zip(ids, found, strict=True)
            if beat is not None
        }
    except (RedisError, msgspec.DecodeError) as error:
        log.warning("the replicas' beats cannot be read: %s", error)
        return {}


def read_asked() -> dict[str, float]:
    """Since when (unix time) each deployment that is not up is asked for, as the controller last told."""
    try:
        found = connection().get(ASKED_KEY)
        return msgspec.json.decode(found, type=dict[str, float]) if found else {}
    except (RedisError, msgspec.DecodeError) as error:
        log.warning("who is asked for cannot be read: %s", error)
        return {}
