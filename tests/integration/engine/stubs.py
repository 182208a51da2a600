"""A worker over an engine without a model, in a process of its own, to test all that is around vLLM."""

from __future__ import annotations

import sys
import time

from inference.engine.base import Output, Prepared
from inference.engine.worker import EngineWorker
from inference.protocol import GenerateRequest
from mmserve.errors import InvalidRequest
from tests.bench.instant_engine import InstantEngine


class StubEngine(InstantEngine):
    """A token a stream every few ms. The prompts ``refused``, ``broken`` and ``deadly`` do as they say."""

    STEP_S = 0.005

    def __init__(self, max_streams: int) -> None:
        super().__init__(max_streams)
        self._deadly = False

    def prepare(self, request: GenerateRequest) -> Prepared:
        if request.prompts == ["refused"]:
            raise InvalidRequest("refused indeed", param="prompt")
        if request.prompts == ["broken"]:
            raise ZeroDivisionError("a secret prompt")
        return super().prepare(request)

    def add(self, job_id: str, request: GenerateRequest, prepared: Prepared) -> None:
        self._deadly = self._deadly or request.prompts == ["deadly"]
        super().add(job_id, request, prepared)

    def step(self) -> list[Output]:
        if self._deadly:
            raise RuntimeError("the engine core is dead")
        time.sleep(self.STEP_S)
        return super().step()


def main(redis_url: str, replica: str, max_streams: str) -> None:
    streams = int(max_streams)
    worker = EngineWorker(
        replica=replica,
        deployment="stub",
        redis_url=redis_url,
        open_engine=lambda tell_stage: StubEngine(streams),
        max_streams=streams,
    )
    worker.work()


if __name__ == "__main__":
    main(*sys.argv[1:])
