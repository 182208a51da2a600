"""Two real models on memory for one: requests wake what sleeps, streams are never cut, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import expect
from tests.e2e.platform import Platform, sse, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

OPTIONS = {
    "kv_cache_bytes": 64 * 2**20,
    "context_length": 1024,
    "max_streams": 8,
    "min_residency_s": 1,
    "max_wait_s": 3,
}


@pytest.fixture(scope="module")
def crowded(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """``duo@a`` and ``duo@b`` of the same files, each about 0.7 GiB, on a budget of 1.1 GiB."""
    source = next((platform.data_dir / "models" / "smollm2-135m-instruct").iterdir())
    started = Platform(
        tmp_path_factory.mktemp("swap") / "data",
        demo=False,
        MMSERVE_SOURCE_ROOTS=str(source.parent),
        MMSERVE_MEMORY_BYTES=str(1100 * 2**20),
    )
    http = started.http
    model = expect(http.post("/v1/registry/models", json={"name": "duo"}), 201)
    body = {"model": model["id"], "version": "a", "source_uri": f"file://{source}", "engine_options": OPTIONS}
    version = expect(http.post("/v1/registry/versions", json=body), 201)
    expect(http.post(f"/v1/registry/versions/{version['id']}/import", json={}), 202)
    wait_until(lambda: started.status("duo@a")["status"] == "unloaded", 150, "duo@a is imported")
    expect(http.post(f"/v1/registry/versions/{version['id']}/duplicate", json={"version": "b"}), 201)
    try:
        for name in ("duo@a", "duo@b"):
            expect(http.post(f"/v1/models/{name}/load", json={}), 202)
            wait_until(lambda name=name: started.status(name)["status"] == "ready", 150, f"{name} is ready")
        yield started
    finally:
        started.stop()


def ask(platform: Platform, model: str, **body: Any) -> Any:
    return platform.http.post(
        "/v1/completions",
        json={"model": model, "prompt": "Once", "max_tokens": 4, "temperature": 0, **body},
        timeout=180,
    )


def test_a_request_wakes_the_one_that_sleeps(crowded: Platform) -> None:
    wait_until(lambda: crowded.status("duo@a")["status"] == "asleep", 30, "a sleeps")
    assert "a request wakes it" in crowded.status("duo@a")["reason"]
    time.sleep(1.1)

    answer = ask(crowded, "duo@a")

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-mmserve-model"] == "duo@a"
    wait_until(lambda: crowded.status("duo@b")["status"] == "asleep", 30, "b sleeps")


def test_a_stream_is_not_cut_by_a_swap_that_can_wait(crowded: Platform) -> None:
    assert ask(crowded, "duo@a").status_code == 200
    finished: list[str] = []

    def other() -> None:
        assert ask(crowded, "duo@b").status_code == 200
        finished.append("b")

    body = {"model": "duo@a", "prompt": "Once", "max_tokens": 150, "ignore_eos": True, "temperature": 0}
    tokens = 0
    with crowded.stream({**body, "stream_options": {"include_usage": True}}) as answer:
        thread = threading.Thread(target=other)
        for event in sse(answer.iter_lines()):
            if event == "[DONE]":
                finished.append("a")
            elif event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            elif not thread.is_alive() and not finished and thread.ident is None:
                thread.start()
    thread.join(180)

    assert tokens == 150
    assert finished == ["a", "b"]


def test_alternating_demand_is_answered_whole(crowded: Platform) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: ask(crowded, f"duo@{'ab'[n % 2]}"), range(24)))

    assert [answer.status_code for answer in answers] == [200] * 24
    assert {answer.headers["x-mmserve-model"] for answer in answers} == {"duo@a", "duo@b"}


def test_a_client_that_leaves_while_it_is_held_is_forgotten(crowded: Platform) -> None:
    assert ask(crowded, "duo@a").status_code == 200
    import httpx

    with pytest.raises(httpx.ReadTimeout):
        crowded.http.post(
            "/v1/completions", json={"model": "duo@b", "prompt": "Once", "max_tokens": 4}, timeout=0.3
        )
    # Whether or not b was woken for it, nothing of it is left and both still answer.
    for model in ("duo@b", "duo@a"):
        assert ask(crowded, model).status_code == 200
