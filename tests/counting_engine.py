"""An engine that counts: its text says of every token which one it is, so that a lost or doubled one shows.

Named by MMSERVE_ENGINE, it stands in for vLLM where the test is about nodes, leases and memory.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from inference.engine.base import Output, Prepared
from inference.protocol import DELTA, EngineOptions, GenerateRequest
from tests.bench.instant_engine import InstantEngine

STEP_S = 0.01


def counted(tokens: int) -> str:
    """The whole text of so many tokens."""
    return "".join(f"{number} " for number in range(tokens))


class CountingEngine(InstantEngine):
    """``0 1 2 …``, a token a step; a continued text goes on counting. SIGUSR1 hangs its thread, and only that."""

    def __init__(self, model_path: str, options: EngineOptions, tell_stage: Callable[[str], None]) -> None:
        super().__init__(options.max_streams)
        tell_stage("counting")
        signal.signal(signal.SIGUSR1, _hang)

    def prepare(self, request: GenerateRequest) -> Prepared:
        return Prepared([len(request.resume_token_ids) + 1], 1, None)

    def add(self, job_id: str, request: GenerateRequest, prepared: Prepared) -> None:
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


def _hang(_number: int, _frame: Any) -> None:
    while True:
        time.sleep(60)
