"""Down the ladder and up again: real gateway, controller, node and worker, around an engine that can rest.

vLLM's own sleep needs a GPU, which there is none of here: tests/counting_engine.py stands in for it, with real memory.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.counting_engine import KV_BYTES, WEIGHTS_BYTES, counted, spoil
from tests.e2e.conftest import expect, register_count
from tests.e2e.platform import Platform, wait_until
from tests.e2e.reader import Reader

pytestmark = pytest.mark.timeout(120)

BUDGET = 4 * 2**30
# Less than a cache of count's: that is all that has to go.
SHORT = KV_BYTES // 2
NUMBERS = itertools.count(1)
ASK = {"model": "count@1", "prompt": "one", "temperature": 0, "max_tokens": 20}


@pytest.fixture
def up(counting: Platform) -> Iterator[psutil.Process]:
    """``count@1`` serves, on one replica: its process."""
    counting.http.post("/v1/models/count/unload", json={})
    wait_until(lambda: counting.status("count@1")["status"] == "unloaded", 40, "it is unloaded")
    expect(counting.http.post("/v1/models/count/load", json={}), 202)
    counting.wait_ready("count@1")
    yield psutil.Process(_row(counting, "count-1")["pid"])
    _configure(counting, "count@1", idle_ttl_s=None)
    for how in ("rot", "gibberish"):
        spoil(counting.data_dir, how).unlink(missing_ok=True)


@pytest.fixture
def big(counting: Platform, up: psutil.Process) -> Iterator[str]:
    """Another version, which lacks SHORT bytes beside ``count@1``; unloaded in the end."""
    served = _row(counting, "count-1")["reserved"]
    all_but_cache = served - KV_BYTES
    kv_cache_bytes = BUDGET - served + SHORT - all_but_cache
    name = register_count(counting, f"big{next(NUMBERS)}", kv_cache_bytes=kv_cache_bytes, min_residency_s=0)
    yield name
    expect(counting.http.post(f"/v1/models/{name}/unload", json={}), 202)
    wait_until(lambda: counting.status(name)["status"] == "unloaded", 40, "what rests is unloaded, too")


def test_a_neighbour_takes_the_cache_alone_and_gives_it_back(
    counting: Platform, up: psutil.Process, big: str
) -> None:
    before = _row(counting, "count-1")
    resident = up.memory_info().rss
    expect(counting.http.post(f"/v1/models/{big}/load", json={}), 202)
    counting.wait_ready(big)

    lower = _row(counting, "count-1")
    assert (lower["pid"], lower["rung"]) == (up.pid, "kv_released")
    assert before["reserved"] - lower["reserved"] == KV_BYTES
    assert resident - up.memory_info().rss > 0.9 * KV_BYTES
    said = counting.status("count@1")
    assert (said["status"], said["reason"]) == (
        "asleep",
        "It rests (its KV cache is given back); a request wakes it.",
    )
    shown = _deployment(counting, "count@1")
    assert shown["rung"] == "kv_released"
    assert shown["ladder"] == ["serving", "kv_released", "asleep", "discarded", "stopped"]

    answer = counting.http.post("/v1/completions", json=ASK)
    assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, counted(20))
    wait_until(lambda: _row(counting, "count-1")["rung"] == "serving", 10, "its row says that it serves")
    again = _row(counting, "count-1")
    assert (again["pid"], again["reserved"]) == (up.pid, before["reserved"])
    assert again["wake_seconds"]["kv_released"] > 0
    assert _row(counting, big.replace("@", "-"))["rung"] == "kv_released", (
        "the other one gave way in its turn"
    )
    counting.books_balance()


def test_one_whose_cache_is_taken_goes_down_a_rung_further_when_more_is_wanted(
    counting: Platform, up: psutil.Process, big: str
) -> None:
    served = _row(counting, "count-1")["reserved"]
    expect(counting.http.post(f"/v1/models/{big}/load", json={}), 202)
    counting.wait_ready(big)
    expect(counting.http.post(f"/v1/models/{big}/unload", json={}), 202)
    wait_until(lambda: counting.status(big)["status"] == "unloaded", 40, "its memory is free again")
    lower = _row(counting, "count-1")
    assert lower["rung"] == "kv_released", "nobody has asked for it"
    resident = up.memory_info().rss

    # Now the cache is not enough: a part of the weights' room is wanted as well.
    kv_cache_bytes = BUDGET - lower["reserved"] + WEIGHTS_BYTES // 2 - (served - KV_BYTES)
    bigger = register_count(counting, "bigger", kv_cache_bytes=kv_cache_bytes, min_residency_s=0)
    expect(counting.http.post(f"/v1/models/{bigger}/load", json={}), 202)
    counting.wait_ready(bigger)
    deep = _row(counting, "count-1")
    assert (deep["pid"], deep["rung"]) == (up.pid, "asleep")
    assert served - deep["reserved"] == KV_BYTES + WEIGHTS_BYTES
    assert resident - up.memory_info().rss < WEIGHTS_BYTES // 2, "its weights are in host memory now"

    held = Reader(counting, ASK)
    assert (held.finished().error, held.text) == (None, counted(20))
    wait_until(lambda: _row(counting, "count-1")["rung"] == "serving", 10, "its row says that it serves")
    again = _row(counting, "count-1")
    assert (again["pid"], again["reserved"]) == (up.pid, served)
    assert again["wake_seconds"]["asleep"] > 0
    counting.books_balance()
    expect(counting.http.post(f"/v1/models/{bigger}/unload", json={}), 202)
    wait_until(lambda: counting.status(bigger)["status"] == "unloaded", 40, "it is unloaded")


def test_an_idle_one_sleeps_in_host_memory_and_the_same_process_wakes(
    counting: Platform, up: psutil.Process
) -> None:
    before = _row(counting, "count-1")
    reader = Reader(counting, {**ASK, "max_tokens": 300})
    wait_until(lambda: reader.chunks > 3, 20, "it streams")
    _configure(counting, "count@1", idle_ttl_s=1)
    assert reader.finished().text == counted(300), "a stream is never cut by a sleep"
    wait_until(lambda: _row(counting, "count-1")["rung"] == "asleep", 30, "it sleeps")
    lower = _row(counting, "count-1")
    assert before["reserved"] - lower["reserved"] == KV_BYTES + WEIGHTS_BYTES
    _configure(counting, "count@1", idle_ttl_s=None)

    held = [Reader(counting, ASK) for _ in range(3)]
    for reader in held:
        assert reader.finished().text == counted(20)
    assert _row(counting, "count-1")["pid"] == up.pid
    counting.books_balance()


@pytest.mark.parametrize(("how", "words"), [("gibberish", "the canary said"), ("rot", "its weights are not")])
def test_what_does_not_wake_as_it_was_is_ended_and_a_new_engine_answers(
    counting: Platform, up: psutil.Process, how: str, words: str
) -> None:
    _configure(counting, "count@1", idle_ttl_s=1)
    wait_until(lambda: _row(counting, "count-1")["rung"] == "asleep", 30, "it sleeps")
    _configure(counting, "count@1", idle_ttl_s=None)
    spoil(counting.data_dir, how).touch()
    held = Reader(counting, ASK)
    assert (held.finished().error, held.text) == (None, counted(20))
    assert not psutil.pid_exists(up.pid)
    [(state, reason)] = counting.rows(f"SELECT state, reason FROM inference_replica WHERE pid = {up.pid}")
    assert state == "failed"
    assert words in reason
    counting.books_balance()


def _configure(platform: Platform, served_id: str, **changes: Any) -> None:
    path = f"/v1/registry/deployments/{_deployment(platform, served_id)['id']}"
    expect(platform.http.patch(path, json=changes), 200)


def _deployment(platform: Platform, served_id: str) -> dict[str, Any]:
    found = expect(platform.http.get("/v1/registry/deployments"), 200)["results"]
    return next(row for row in found if row["served_id"] == served_id)


def _row(platform: Platform, deployment: str) -> dict[str, Any]:
    """Its replica that has memory."""
    names = ("pid", "rung", "reserved", "host", "wake_seconds")
    [row] = platform.rows(
        "SELECT pid, rung, reserved_bytes, host_bytes, wake_seconds FROM inference_replica r "
        f"JOIN inference_deployment d ON d.id = r.deployment_id WHERE d.name = '{deployment}' "
        "AND r.state IN ('loading', 'ready', 'draining')"
    )
    found = dict(zip(names, row, strict=True))
    return {**found, "wake_seconds": json.loads(found["wake_seconds"])}
