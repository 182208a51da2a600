"""An engine that counts: its text says of every token which one it is, so that a lost or doubled one shows.

Named by MMSERVE_ENGINE, it stands in for vLLM where the test is about nodes, leases and memory. It rests on every
rung of the ladder, and its weights and its cache are real memory. Files in the data directory spoil it: with ``stuck``
it does not load, ``rot`` turns over a weight in its sleep, ``gibberish`` changes what it says.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from inference.capacity.ladder import ASLEEP, DISCARDED, KV_RELEASED, RESTING
from inference.engine.base import Output, Prepared
from inference.protocol import DELTA, EngineOptions, GenerateRequest
from tests.bench.instant_engine import InstantEngine

STEP_S = 0.01
WEIGHTS_BYTES, KV_BYTES = 32 * 2**20, 64 * 2**20
FIRST_TOKEN = 7


def counted(tokens: int) -> str:
    """The whole text of so many tokens."""
    return "".join(f"{number} " for number in range(tokens))


def spoil(data_dir: Path, how: str) -> Path:
    """The file that spoils every engine of this platform, while it is there."""
    return data_dir / how


class CountingEngine(InstantEngine):
    """``0 1 2 …``, a token a step; a continued text goes on counting. SIGUSR1 hangs its thread, and only that."""

    rungs = RESTING

    def __init__(self, model_path: str, options: EngineOptions, tell_stage: Callable[[str], None]) -> None:
        super().__init__(options.max_streams)
        tell_stage("counting")
        signal.signal(signal.SIGUSR1, _hang)
        self._data_dir = Path(os.environ["MMSERVE_DATA_DIR"])
        while spoil(self._data_dir, "stuck").exists():
            time.sleep(0.05)
        _read(Path(model_path))
        self._device = {"weights": b"w" * WEIGHTS_BYTES, "kv": b"k" * KV_BYTES}
        self._host: bytes = b""
        self._says = FIRST_TOKEN

    def prepare(self, request: GenerateRequest) -> Prepared:
        return Prepared([len(request.resume_token_ids) + 1], 1, None)

    def add(self, job_id: str, request: GenerateRequest, prepared: Prepared) -> None:
        assert len(self._device) == 2, "a client was routed to an engine that sleeps"
        super().add(job_id, request, prepared)
        said = len(request.resume_token_ids)
        self._left[job_id] -= said
        self._made[job_id] = said

    def step(self) -> list[Output]:
        time.sleep(STEP_S)
        at = dict(self._made)
        outputs = super().step()
        for output in outputs:
            for tail in output.tails:
                if tail[0] == DELTA:
                    number = at[output.job_id]
                    tail[2:5] = [f"{number} ", [number], None]
        return outputs

    def sleep(self, rung: str) -> int:
        before = sum(map(len, self._device.values()))
        if rung == ASLEEP:
            self._host = bytes(bytearray(self._device["weights"]))
        if rung in (ASLEEP, DISCARDED):
            del self._device["weights"]
        self._device.pop("kv", None)
        assert rung in (KV_RELEASED, ASLEEP, DISCARDED)
        return before - sum(map(len, self._device.values()))

    def wake(self) -> None:
        weights = self._device.get("weights") or self._host or b"w" * WEIGHTS_BYTES
        if spoil(self._data_dir, "rot").exists():
            weights = weights[:-1] + b"?"
        self._device = {"weights": weights, "kv": b"k" * KV_BYTES}
        self._host = b""
        self._says = FIRST_TOKEN + spoil(self._data_dir, "gibberish").exists()

    def fingerprint(self) -> str:
        return hashlib.sha256(self._device["weights"]).hexdigest()

    def canary(self) -> list[int]:
        return [self._says]


def _read(folder: Path) -> None:
    """As far as a damaged file is noticed."""
    json.loads((folder / "tokenizer_config.json").read_text())
    for file in folder.glob("*.safetensors"):
        safe_open(file, "numpy")


def _hang(_number: int, _frame: Any) -> None:
    while True:
        time.sleep(60)
