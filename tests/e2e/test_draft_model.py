"""A small version guesses for another one, through the front door: REST, the admin, completions, what it took."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from playwright.sync_api import expect as expect_of

from inference.node.agent import REPORT_EVERY_S
from tests.e2e.conftest import expect
from tests.e2e.platform import Platform, wait_until
from tests.e2e.test_admin import HEIGHT, WIDTH, browser, log_in, save, say
from tests.e2e.test_memory import CLOSE, observations
from tests.integration.engine.conftest import smollm2

__all__ = ["browser", "smollm2"]

pytestmark = [pytest.mark.vllm, pytest.mark.browser, pytest.mark.timeout(900)]

STREAMS, LONG = 16, 6
OPTIONS = {
    "dtype": "float32",
    "context_length": 1024,
    "max_streams": STREAMS,
    "kv_cache_bytes": 768 * 2**20,
    "speculation": "draft_model",
    "speculative_tokens": 3,
    "draft": "guesser@1",
}
GREEDY = {"model": "spoken", "prompt": "Once upon a time, in a village by the sea,", "temperature": 0}


@pytest.fixture(scope="module")
def drafted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with SmolLM2 as ``guesser@1`` and as ``spoken@1``, for which the other one guesses."""
    started = Platform(
        tmp_path_factory.mktemp("drafted") / "data", demo=False, MMSERVE_SOURCE_ROOTS=str(smollm2.parent)
    )
    try:
        register(started, "guesser", smollm2, {})
        spoken = register(started, "spoken", smollm2, OPTIONS)
        expect(started.http.post(f"/v1/registry/models/{spoken}/promote", json={"version": "1"}), 200)
        yield started
    finally:
        started.stop()


def register(platform: Platform, name: str, source: Path, options: dict[str, Any]) -> int:
    """The model's key."""
    http = platform.http
    model = expect(http.post("/v1/registry/models", json={"name": name}), 201)
    body = {
        "model": model["id"],
        "version": "1",
        "source_uri": f"file://{source}",
        "engine_options": options,
    }
    version = expect(http.post("/v1/registry/versions", json=body), 201)
    expect(http.post(f"/v1/registry/versions/{version['id']}/import", json={}), 202)
    wait_until(lambda: platform.status(f"{name}@1")["status"] == "unloaded", 60, f"{name}@1 is imported")
    return int(model["id"])


def load(platform: Platform) -> None:
    expect(platform.http.post("/v1/models/spoken/load", json={}), 202)
    platform.wait_ready("spoken")


def unload(platform: Platform) -> None:
    expect(platform.http.post("/v1/models/spoken/unload", json={}), 202)
    wait_until(lambda: platform.status("spoken")["status"] == "unloaded", 60, "it is unloaded")


def fill_the_batch(platform: Platform) -> None:
    """More of prompts than one step takes, and all streams speaking at once; three times, as allocators settle."""

    def ask(number: int) -> int:
        body = {
            **GREEDY,
            "prompt": "word " * (900 if number < LONG else 20),
            "max_tokens": 100,
            "ignore_eos": True,
        }
        return platform.http.post("/v1/completions", json=body, timeout=300).status_code

    with ThreadPoolExecutor(STREAMS + 4) as pool:
        for _ in range(3):
            assert set(pool.map(ask, range(STREAMS + 4))) == {200}

    def is_written_down() -> bool:
        """Nothing new between two looks."""
        before = observations(platform, "spoken")[-1]
        time.sleep(2 * REPORT_EVERY_S)  # a node's report and a beat, and more
        now = observations(platform, "spoken")[-1]
        return now == before and now["peak_streams"] >= STREAMS

    wait_until(is_written_down, 60, "a full batch is written down")


def text(platform: Platform) -> str:
    body = {**GREEDY, "max_tokens": 64, "ignore_eos": True}
    return str(expect(platform.http.post("/v1/completions", json=body), 200)["choices"][0]["text"])


def test_a_draft_model_from_its_registration_to_its_end(drafted: Platform, browser: Browser) -> None:
    http = drafted.http
    load(drafted)
    [deployment] = expect(http.get("/v1/registry/deployments"), 200)["results"]
    path = f"/v1/registry/deployments/{deployment['id']}"
    assert (deployment["speculation"], deployment["draft"]) == ("draft_model", "guesser@1")
    guessed = text(drafted)

    # What it took is written down with its draft, and is what the next load is expected to take.
    for _ in range(2):
        fill_the_batch(drafted)
        unload(drafted)
        load(drafted)
    first, second = observations(drafted, "spoken")[:2]
    print(json.dumps({"first": first, "second": second}))
    assert set(second["measured"]) == {"weights", "draft_weights", "kv_cache", "runtime", "activations"}
    assert abs(second["error"]) <= CLOSE

    # The engine's own classes refuse what does not go with it; what guesses stays.
    wrong = http.patch(path, json={"max_batched_tokens": 1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "max_batched_tokens")
    [version] = expect(http.get("/v1/registry/versions?model__name=guesser"), 200)["results"]
    for refused in (
        http.delete("/v1/models/guesser@1"),
        http.delete("/v1/models/guesser?drain=true"),
        http.post(f"/v1/registry/versions/{version['id']}/archive", json={}),
    ):
        assert refused.status_code == 409
        assert "guesser@1 is the draft of deployment spoken-1" in refused.json()["error"]["message"]

    # Edited in the admin: without a draft it says the same.
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, base_url=drafted.url)
    page = context.new_page()
    log_in(page, drafted.credentials["username"], drafted.credentials["password"])
    expect_of(page).to_have_title(re.compile("Dashboard"), timeout=20_000)
    page.goto(f"/admin/inference/deployment/{deployment['id']}/change/")
    say(page).to_contain_text("draft's weights")
    page.select_option("select[name=speculation]", "")
    save(page)
    say(page).to_contain_text("empty the draft, or set speculation to draft_model")
    page.evaluate("document.querySelector('select[name=draft]').value = ''")
    page.select_option("select[name=speculation]", "")
    save(page)
    context.close()
    assert (expect(http.get(path), 200)["speculation"], expect(http.get(path), 200)["draft"]) == ("", None)
    unload(drafted)
    load(drafted)
    assert text(drafted) == guessed
    assert expect(http.delete("/v1/models/guesser"), 200)["deleted"] is True
