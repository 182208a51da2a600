"""Beats add up to loads; silence takes a replica away."""

from __future__ import annotations

from inference.gateway.live import LiveState
from inference.protocol import STALE_AFTER_S


def beat(replica: str = "a", **more: object) -> dict:
    return {"replica": replica, "deployment": "echo", "worker": f"w-{replica}", "state": "ready", **more}


def test_the_replicas_of_a_deployment_add_up():
    live = LiveState()
    live.beat(beat("a", running=2, max_streams=8, jobs_per_s=1.5), 0.0)
    live.beat(beat("b", running=3, max_streams=8, jobs_per_s=0.5), 0.0)
    live.beat(beat("c", state="loading", stage="weights"), 0.0)
    load = live.loads["echo"]
    assert (load.ready, load.loading, load.running, load.max_streams, load.jobs_per_s) == (2, 1, 5, 16, 2.0)
    assert live.loading("echo").stage == "weights"
    assert live.replicas("echo") == ["a", "b"]


def test_a_silent_replica_is_forgotten():
    live = LiveState()
    live.beat(beat(), 0.0)
    live.prune(STALE_AFTER_S)
    assert live.alive("a")
    live.prune(STALE_AFTER_S + 0.1)
    assert not live.alive("a")
    assert not live.loads


def test_a_draining_replica_takes_no_requests_but_may_hold_some():
    live = LiveState()
    live.beat(beat(state="draining"), 0.0)
    assert live.loads["echo"].ready == 0
    assert live.replicas("echo") == ["a"]
    assert live.worker_alive("w-a")


def test_a_malformed_beat_is_ignored():
    live = LiveState()
    live.beat({"replica": "a", "running": "many"}, 0.0)
    assert not live.loads


def test_what_was_given_up_does_not_come_back_whatever_it_still_says():
    live = LiveState()
    live.beat(beat(), 0.0)
    live.lost("a")
    live.beat(beat(), 1.0)
    assert not live.alive("a")
    assert live.is_fenced("a")
    live.beat(beat("b"), 1.0)
    live.prune(STALE_AFTER_S + 1.1)
    assert not live.is_fenced("b"), "one that was only silent may come back"
