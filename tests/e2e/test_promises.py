"""Each promise of docs/architecture.md, broken for real: engine, Redis, gateway, database, node."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from tests.e2e.conftest import RealServers
from tests.e2e.platform import Platform, sse, wait_until
from tests.e2e.reader import GREEDY, Reader


@pytest.fixture(autouse=True)
def _served(breakable: Platform) -> None:
    """Every test starts with a model that serves."""
    breakable.wait_ready("smol")


def test_an_engine_killed_in_the_middle_of_a_text_is_continued_exactly(
    breakable: Platform, undisturbed: str
) -> None:
    reader = Reader(breakable, GREEDY)
    wait_until(lambda: reader.chunks >= 10, 60, "ten chunks have come")
    breakable.engine("smol").kill()
    reader.finished()
    assert reader.error is None
    assert reader.finish == "length"
    assert reader.text == undisturbed


def test_an_engine_killed_before_the_first_token_loses_no_request(
    breakable: Platform, undisturbed: str
) -> None:
    engine = breakable.engine("smol")
    engine.suspend()
    readers = [Reader(breakable, GREEDY) for _ in range(4)]
    time.sleep(0.5)  # the requests are with an engine that does not move
    engine.kill()
    for reader in readers:
        reader.finished()
        assert reader.error is None
        assert reader.text == undisturbed


@pytest.mark.parametrize("wipe", [False, True], ids=["with its disk", "with nothing"])
def test_redis_restarted_in_the_middle_of_a_text_loses_and_doubles_nothing(
    breakable: Platform, servers: RealServers, undisturbed: str, wipe: bool
) -> None:
    reader = Reader(breakable, GREEDY)
    wait_until(lambda: reader.chunks >= 10, 60, "ten chunks have come")
    servers.restart_redis(wipe=wipe)
    reader.finished()
    assert reader.error is None
    assert reader.text == undisturbed
    breakable.wait_ready("smol")
    assert Reader(breakable, GREEDY).finished().text == undisturbed


def test_the_database_gone_stops_no_request(
    breakable: Platform, servers: RealServers, undisturbed: str
) -> None:
    servers.postgres.stop()
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            answer = breakable.http.post("/v1/completions", json={**GREEDY, "max_tokens": 8})
            assert answer.status_code == 200, answer.text
            time.sleep(1)
        managed = breakable.http.get("/v1/models")
        assert managed.status_code == 503
        assert set(managed.json()["error"]) == {"message", "type", "param", "code"}
    finally:
        servers.postgres.start()
    wait_until(lambda: breakable.http.get("/v1/models").status_code == 200, 30, "management is back")
    assert Reader(breakable, GREEDY).finished().text == undisturbed


def test_a_gateway_killed_is_back_and_the_engine_works_for_nobody(breakable: Platform) -> None:
    reader = Reader(breakable, {**GREEDY, "max_tokens": 4000})
    wait_until(lambda: reader.chunks >= 3, 60, "the stream runs")
    breakable.processes("daphne")[0].kill()
    reader.finished()
    assert reader.error is not None
    breakable.wait_ready("smol")
    # One text of 4,000 tokens takes minutes here: only an aborted one leaves the engine idle so soon.
    wait_until(lambda: _running(breakable) == 0, 20, "the engine dropped the orphan")
    assert breakable.http.post("/v1/completions", json={**GREEDY, "max_tokens": 4}).status_code == 200


@pytest.mark.parametrize("chunks", [0, 5], ids=["before the first token", "in the middle"])
def test_a_client_that_leaves_frees_the_engine(breakable: Platform, chunks: int) -> None:
    with breakable.stream({**GREEDY, "max_tokens": 4000}) as answer:
        if chunks:
            lines = sse(answer.iter_lines())
            for _ in range(chunks):
                next(lines)
    wait_until(lambda: _running(breakable) == 0, 20, "the engine is free")


def test_a_killed_node_takes_its_engines_along_and_comes_back(breakable: Platform) -> None:
    engine = breakable.engine("smol")
    node = next(process for process in breakable.processes("manage.py node"))
    node.kill()
    wait_until(lambda: not engine.is_running() or _is_zombie(engine), 20, "its engine is gone")
    breakable.wait_ready("smol")
    answer = breakable.http.post("/v1/completions", json={**GREEDY, "max_tokens": 4}, timeout=180)
    assert answer.status_code == 200
    breakable.books_balance()


def test_a_hung_engine_is_found_killed_and_replaced_and_its_requests_are_answered(
    breakable: Platform,
) -> None:
    hung = breakable.engine("smol")
    hung.send_signal(signal.SIGSTOP)
    answer = breakable.http.post("/v1/completions", json={**GREEDY, "max_tokens": 8}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert not hung.is_running()
    breakable.books_balance()


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _running(platform: Platform) -> int:
    answer = platform.http.post("/v1/routing/explain", json={"model": "smol", "prompt": "x"})
    if answer.status_code != 200:
        return -1
    candidates = answer.json()["candidates"]
    load = candidates[0]["scores"].get("load", 0)
    return round(load * 64)
