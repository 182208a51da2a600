"""A job that prefers a replica: who gets it, when, and that nobody waits for one that cannot take it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis

from inference.engine import rqkeys, scripts
from inference.protocol import ReplicaBeat, beat_key, bell_key, fence_key, queue_name

HERE, THERE = "here", "there"
DEPLOYMENT = "d"


class Queues:
    """The three queues of one deployment, filled and pulled by hand."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)

    def put(self, job_id: str, prefers: str = "", *, hold_s: float = 60.0, priority: str = "normal") -> None:
        fields: dict[Any, Any] = {"data": "x", "status": "queued", "enqueued_at": rqkeys.stamp(time.time())}
        if prefers:
            fields |= {"prefers": prefers, "held_until": time.time() + hold_s}
        self.redis.hset(f"rq:job:{job_id}", mapping=fields)
        self.redis.rpush(rqkeys.queue_key(queue_name(DEPLOYMENT, priority)), job_id)

    def beat(self, replica: str, state: str = "ready", **more: int) -> None:
        said = ReplicaBeat(
            replica=replica, deployment=DEPLOYMENT, worker="w", state=state, **{"max_streams": 8, **more}
        )
        self.redis.set(beat_key(replica), msgspec.json.encode(said))

    def pull(self, most: int = 100, replica: str = HERE) -> tuple[int, int, list[str]]:
        """How many wait still for it, when to look again (ms), and what it got."""
        queues = rqkeys.deployment_queues(DEPLOYMENT)
        keys = [*map(rqkeys.queue_key, queues), bell_key(DEPLOYMENT), rqkeys.worker_key("w")]
        keys += [rqkeys.worker_executions_key("w"), fence_key(replica)]
        now = time.time()
        args = [most, "w", rqkeys.stamp(now), now, 90, "p", rqkeys.stamp(now - 30), replica, *queues]
        left, held_ms, *rows = self.redis.register_script(scripts.source("pull"))(keys=keys, args=args)
        return left, held_ms, [row[0].decode() for row in rows]

    def waiting(self, priority: str = "normal") -> list[str]:
        return [one.decode() for one in self.redis.lrange(f"rq:queue:{DEPLOYMENT}.{priority}", 0, -1)]


@pytest.fixture
def queues(redis_url: str) -> Iterator[Queues]:
    found = Queues(redis_url)
    found.beat(THERE)
    yield found
    found.redis.close()


def test_a_job_is_left_for_the_replica_that_it_prefers_and_keeps_its_place(queues: Queues) -> None:
    for job_id, prefers in (("1", ""), ("2", THERE), ("3", HERE), ("4", THERE), ("5", "")):
        queues.put(job_id, prefers)
    left, held_ms, got = queues.pull()
    assert got == ["1", "3", "5"]
    assert queues.waiting() == ["2", "4"]
    assert left == 0
    assert 59_000 < held_ms <= 60_000
    assert not queues.redis.exists(bell_key(DEPLOYMENT)), "nobody else is woken for what is not theirs"
    assert queues.pull(replica=THERE) == (0, 0, ["2", "4"])


def test_after_its_wait_anybody_takes_it(queues: Queues) -> None:
    queues.put("1", THERE, hold_s=0.0)
    assert queues.pull() == (0, 0, ["1"])


@pytest.mark.parametrize("trouble", ["gone", "draining", "asleep", "full", "fenced", "unreadable"])
def test_nobody_waits_for_a_replica_that_cannot_take_it(queues: Queues, trouble: str) -> None:
    if trouble == "gone":
        queues.redis.delete(beat_key(THERE))
    elif trouble == "full":
        queues.beat(THERE, running=6, waiting=2)
    elif trouble == "fenced":
        queues.redis.set(fence_key(THERE), b"")
    elif trouble == "unreadable":
        queues.redis.set(beat_key(THERE), b"[1]")
    else:
        queues.beat(THERE, trouble)
    queues.put("1", THERE)
    assert queues.pull() == (0, 0, ["1"])


def test_classes_stay_strict_for_what_a_replica_may_take(queues: Queues) -> None:
    queues.put("low", HERE, priority="low")
    queues.put("normal", priority="normal")
    queues.put("high", THERE, priority="high")
    assert queues.pull(1)[2] == ["normal"]
    assert queues.pull(1)[2] == ["low"]
    assert queues.pull(1, THERE)[2] == ["high"]


def test_what_is_left_behind_counts_only_what_this_replica_may_take(queues: Queues) -> None:
    for job_id, prefers in (("1", THERE), ("2", ""), ("3", ""), ("4", THERE)):
        queues.put(job_id, prefers)
    left, _, got = queues.pull(1)
    assert got == ["2"]
    assert left == 2, "3, and 4, which it has not looked at"
    assert queues.waiting() == ["1", "3", "4"]
    assert queues.redis.exists(bell_key(DEPLOYMENT))


def test_a_long_line_for_another_is_not_looked_through_to_its_end(queues: Queues) -> None:
    for number in range(300):
        queues.put(f"{number}", THERE)
    queues.put("last")
    left, held_ms, got = queues.pull()
    assert (left, got) == (0, [])
    assert held_ms > 0
    assert queues.waiting() == [*map(str, range(300)), "last"]


def test_virtual_time_does_not_go_back_for_a_job_that_was_held(queues: Queues) -> None:
    fair = f"mmserve:fair:rq:queue:{DEPLOYMENT}.normal"
    queues.put("1", THERE)
    queues.put("2")
    queues.redis.hset(fair, mapping={"j:1": 3, "j:2": 5})
    assert queues.pull()[2] == ["2"]
    assert queues.pull(replica=THERE)[2] == ["1"]
    assert queues.redis.hgetall(fair) == {b"v": b"5"}


def test_a_job_that_was_given_back_prefers_nobody(queues: Queues) -> None:
    queues.put("1", THERE)
    assert queues.pull(replica=THERE)[2] == ["1"]
    [composite] = queues.redis.smembers(rqkeys.worker_executions_key("w"))
    execution = composite.decode().partition(":")[2]
    queues.redis.register_script(scripts.source("give_back"))(
        keys=[rqkeys.worker_executions_key("w"), bell_key(DEPLOYMENT)],
        args=["1", f"{DEPLOYMENT}.normal", execution],
    )
    assert queues.pull()[2] == ["1"]
