"""Ctrl-C in the terminal of `up`: requests in flight finish, a second one ends them, and all of it is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.counting_engine import counted
from tests.e2e.conftest import expect, give_count, start_counting
from tests.e2e.platform import Platform, wait_until
from tests.e2e.reader import Reader

pytestmark = pytest.mark.timeout(240)

MANY, LONG = 1500, 10_000  # tokens: fifteen seconds, minutes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a platform that knows the model ``count`` and has been stopped."""
    platform = start_counting(tmp_path)
    try:
        give_count(platform)
        expect(platform.http.post("/v1/models/count/load", json={}), 202)
        platform.wait_ready("count")
    finally:
        assert platform.stop() == 0
    return tmp_path


def started(folder: Path, **environment: str) -> tuple[Platform, list[psutil.Process]]:
    """The platform again, its model loaded, and all its processes."""
    platform = start_counting(folder, **environment)
    platform.wait_ready("count")
    return platform, psutil.Process(platform.process.pid).children(recursive=True)


def ended(platform: Platform, processes: list[psutil.Process]) -> None:
    """With 0, and nothing of it is left."""
    assert platform.process.wait(60) == 0
    platform.http.close()
    platform.output.close()
    assert psutil.wait_procs(processes, timeout=5)[1] == []


def busy(platform: Platform, tokens: int) -> Reader:
    reader = Reader(platform, {"model": "count", "prompt": "x", "max_tokens": tokens, "ignore_eos": True})
    wait_until(lambda: reader.chunks, 20, "text comes")
    return reader


def both_run(platform: Platform) -> None:
    wait_until(lambda: "mmserve_requests_in_flight 2.0" in platform.http.get("/metrics").text, 10, "both run")


def ask(platform: Platform, tokens: int) -> httpx.Response:
    body = {"model": "count", "prompt": "x", "max_tokens": tokens, "ignore_eos": True}
    return platform.http.post("/v1/completions", json=body)


def test_requests_finish_before_a_stop_ends_and_a_second_ctrl_c_cuts_them(folder: Path) -> None:
    platform, processes = started(folder)
    with ThreadPoolExecutor() as clients:
        stream, whole = busy(platform, MANY), clients.submit(ask, platform, MANY)
        both_run(platform)
        platform.interrupt()
        wait_until(lambda: platform.http.get("/readyz").status_code == 503, 10, "it is stopping")
        refused = ask(platform, 1)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        page = platform.http.get("/admin/login/")
        assert page.status_code == 503
        stream.join(60)
        assert (stream.text, stream.error) == (counted(MANY), None)
        assert whole.result().json()["choices"][0]["text"] == counted(MANY)
    ended(platform, processes)

    platform, processes = started(folder)
    with ThreadPoolExecutor() as clients:
        stream, whole = busy(platform, LONG), clients.submit(ask, platform, LONG)
        both_run(platform)
        platform.interrupt()
        wait_until(lambda: platform.http.get("/readyz").status_code == 503, 10, "it is stopping")
        platform.interrupt()
        stream.join(20)
        assert stream.error["code"] == "server_stopping"
        assert whole.result().json()["error"]["code"] == "server_stopping"
    ended(platform, processes)


def test_what_the_drain_cuts_is_told_of_the_server_and_not_of_the_client(folder: Path) -> None:
    platform, processes = started(folder, MMSERVE_DRAIN_S="1")
    with ThreadPoolExecutor() as clients:
        stream, whole = busy(platform, LONG), clients.submit(ask, platform, LONG)
        both_run(platform)
        platform.interrupt()
        stream.join(20)
        assert stream.error["code"] == "server_stopping"
        assert whole.result().status_code == 503
    ended(platform, processes)

    platform, _ = started(folder)
    try:
        decisions = expect(platform.http.get("/v1/routing/decisions"), 200)["data"]
        found = [(one["outcome"]["outcome"], one["outcome"]["status"]) for one in decisions]
        assert found == [("server_stopping", 503)] * 2
    finally:
        platform.stop()
