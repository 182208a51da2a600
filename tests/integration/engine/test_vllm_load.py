"""Real vLLM tells how far its load is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.engine import environment

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> dict[str, Any]:
    """What one load told, and took."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.engine.told_load", str(smollm2)],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": environment.preload()},
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("told ")]
    return dict(json.loads(line.removeprefix("told ")))


def test_the_weights_that_are_read_are_counted_to_the_last_byte_of_the_checkpoint(
    loaded: dict[str, Any], smollm2: Path
) -> None:
    told = [one for one in loaded["stages"] if one[0] == "loading weights"]
    counts, totals = [count for _, count, _ in told], {total for _, _, total in told}
    assert totals == {(smollm2 / "model.safetensors").stat().st_size}
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert len(set(counts)) > 100, "tensor by tensor"
    (total,) = totals
    assert 0.99 * total < counts[-1] <= total


def test_the_vocabulary_is_there_twice_once_to_look_up_and_once_to_multiply_with(
    loaded: dict[str, Any], smollm2: Path
) -> None:
    vocabulary = 49_152 * 576 * 2
    file = (smollm2 / "model.safetensors").stat().st_size
    assert loaded["weights"] == pytest.approx(file + vocabulary, rel=0.02)
