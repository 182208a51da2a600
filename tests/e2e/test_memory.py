"""Both demo models on a real node: what a load was predicted to take, what it took, and what the next one learns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from inference.node.agent import REPORT_EVERY_S
from tests.e2e.conftest import expect
from tests.e2e.platform import ROOT, Platform, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

STREAMS = 64
LONG = 3
CLOSE = 0.05
ROWS = """
import json
from inference.models import LoadObservation
print(json.dumps(list(LoadObservation.objects.filter(version__model__name={model!r}).order_by("pk").values(
    "predicted", "measured", "error", "peak_streams", "replica__reserved_bytes"))))
"""


def observations(platform: Platform, model: str) -> list[dict[str, Any]]:
    """The loads of a model, the first one first."""
    command = [sys.executable, str(ROOT / "manage.py"), "shell", "-v", "0", "-c", ROWS.format(model=model)]
    done = subprocess.run(command, env=platform.environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def fill_the_batch(platform: Platform, model: str) -> None:
    """As many streams at once as the deployment may have, and more of prompts than one step takes.

    Three times: the allocator's pages and oneDNN's kernels settle after two (111, 156, 156, 156 MB).
    """

    def ask(number: int) -> int:
        prompt = "word " * (1500 if number < LONG else 20)
        body = {"model": model, "prompt": prompt, "max_tokens": 40, "ignore_eos": True}
        return platform.http.post("/v1/completions", json=body, timeout=300).status_code

    with ThreadPoolExecutor(STREAMS + 8) as pool:
        for _ in range(3):
            assert set(pool.map(ask, range(STREAMS + 8))) == {200}

    def is_written_down() -> bool:
        """Nothing new between two looks."""
        before = observations(platform, model)[-1]
        time.sleep(2 * REPORT_EVERY_S)  # a node's report and a beat, and more
        now = observations(platform, model)[-1]
        return now == before and now["peak_streams"] >= STREAMS

    wait_until(is_written_down, 60, "a full batch is written down")


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_after_one_load_of_the_same_thing_the_estimate_is_within_five_percent(
    platform: Platform, model: str
) -> None:
    http = platform.http
    platform.wait_ready(model)
    fill_the_batch(platform, model)
    count = len(observations(platform, model))

    expect(http.post(f"/v1/models/{model}/unload", json={}), 202)
    wait_until(lambda: platform.status(model)["status"] == "unloaded", 60, f"{model} is unloaded")
    expect(http.post(f"/v1/models/{model}/load", json={}), 202)
    platform.wait_ready(model)
    fill_the_batch(platform, model)
    assert len(observations(platform, model)) > count

    first, second = observations(platform, model)[-2:]
    print(json.dumps({"model": model, "first": first, "second": second}))
    assert set(second["measured"]) == {"weights", "kv_cache", "runtime", "activations"}
    assert abs(second["error"]) <= CLOSE
    # Its reservation is what it takes, once a full batch has been seen.
    assert second["replica__reserved_bytes"] == sum(second["measured"].values())
    metrics = http.get("/metrics").text
    assert (
        f'mmserve_memory_estimate_error_ratio{{device_kind="cpu",model="{model}@1",quantization=""}}'
        in metrics
    )
