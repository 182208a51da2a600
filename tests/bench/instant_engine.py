"""An engine that answers at once: one token a step for every request in the batch, plugged into the real engine worker.

``python -m tests.bench.instant_engine DEPLOYMENT REDIS_URL`` serves a deployment's queues with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from inference.engine.base import Engine, Output, Prepared, Usage
from inference.engine.worker import EngineWorker
from inference.protocol import DELTA, GenerateRequest

CONTEXT_TOKENS = 4096
MAX_STREAMS = 64
PROMPT_TOKENS = 8
DEFAULT_TOKENS = 64


@dataclass(slots=True)
class _Sequence:
    """One request in the batch."""

    wanted: int
    made: int = 0

    def usage(self) -> Usage:
        return Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=self.made, cached_tokens=0)


class InstantEngine:
    """Makes `` token0``, `` token1``, … as many as asked for."""

    context_length = CONTEXT_TOKENS
    max_streams = MAX_STREAMS

    def __init__(self) -> None:
        self._batch: dict[str, _Sequence] = {}

    def is_light(self, request: GenerateRequest) -> bool:
        """There is nothing to tokenize."""
        return True

    def prepare(self, request: GenerateRequest) -> Prepared:
        """One stream for each request."""
        return Prepared(prompt_tokens=[PROMPT_TOKENS], streams=1, body=None)

    def add(self, job_id: str, request: GenerateRequest, prepared: Prepared) -> None:
        """Take the request into the batch."""
        self._batch[job_id] = _Sequence(wanted=request.sampling.max_tokens or DEFAULT_TOKENS)

    def step(self) -> list[Output]:
        """One token for everybody."""
        return [self._next(job_id, sequence) for job_id, sequence in list(self._batch.items())]

    def _next(self, job_id: str, sequence: _Sequence) -> Output:
        number = sequence.made
        sequence.made += 1
        if sequence.made < sequence.wanted:
            return Output(job_id, [[DELTA, 0, f" token{number}", [number], None, None, None]])
        del self._batch[job_id]
        return Output(
            job_id, [[DELTA, 0, f" token{number}", [number], None, "length", None]], usage=sequence.usage()
        )

    def abort(self, job_id: str) -> Usage | None:
        """Take the request out."""
        sequence = self._batch.pop(job_id, None)
        return None if sequence is None else sequence.usage()

    def is_busy(self) -> bool:
        """Whether somebody waits for a token."""
        return bool(self._batch)

    def kv_usage(self) -> float:
        """It has no KV cache; the share of streams in use."""
        return len(self._batch) / MAX_STREAMS

    def close(self) -> None:
        """Forget the batch."""
        self._batch.clear()


def open_instant_engine(tell_stage: Callable[[str], None]) -> Engine:
    """What the worker calls in place of loading a model."""
    tell_stage("instant")
    return InstantEngine()


def main(deployment: str, redis_url: str) -> None:
    """Serve until told to drain."""
    worker = EngineWorker(
        replica="instant-replica",
        deployment=deployment,
        redis_url=redis_url,
        open_engine=open_instant_engine,
        max_streams=MAX_STREAMS,
    )
    worker.work()


if __name__ == "__main__":
    main(*sys.argv[1:])
