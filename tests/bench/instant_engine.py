"""An engine that answers at once, to measure everything around it. Lives with benchmarks and tests only."""

from __future__ import annotations

import time

from inference.engine.base import Output, Prepared, Usage
from inference.protocol import DELTA, GenerateRequest


class InstantEngine:
    """One token a stream and step; ``max_tokens`` of them (0 ends a job in its first step).

    A step costs no CPU, and ``step_s`` of time.
    """

    context_length = 1 << 20
    form = ""
    rungs: tuple[str, ...] = ()

    def __init__(self, max_streams: int = 256, step_s: float = 0.0) -> None:
        self.max_streams = max_streams
        self._step_s = step_s
        self._left: dict[str, int] = {}
        self._made: dict[str, int] = {}

    def is_light(self, request: GenerateRequest) -> bool:
        return True

    def prepare(self, request: GenerateRequest) -> Prepared:
        return Prepared([1], 1, None)

    def add(self, job_id: str, request: GenerateRequest, prepared: Prepared) -> None:
        self._left[job_id] = request.sampling.max_tokens or 0
        self._made[job_id] = 0

    def step(self) -> list[Output]:
        if self._step_s:
            time.sleep(self._step_s)
        outputs = []
        for job_id, left in list(self._left.items()):
            if left == 0:
                outputs.append(Output(job_id, [], self.abort(job_id)))
                continue
            self._left[job_id] = left - 1
            self._made[job_id] += 1
            last = left == 1
            tails = [[DELTA, 0, "tok ", [7], None, "length" if last else None, None]]
            outputs.append(Output(job_id, tails, self.abort(job_id) if last else None))
        return outputs

    def abort(self, job_id: str) -> Usage | None:
        if self._left.pop(job_id, None) is None:
            return None
        return Usage(1, self._made.pop(job_id), 0)

    def is_busy(self) -> bool:
        return bool(self._left)

    def rest(self) -> None:
        """It has nothing to see to."""

    def kv_usage(self) -> float:
        return 0.0

    def memory(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._left.clear()
