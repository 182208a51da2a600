"""``python -m tests.bench.instant_worker DEPLOYMENT REDIS_URL [STEP_S]``: the real worker, the instant engine."""

from __future__ import annotations

import sys

from inference.engine.base import Engine, TellStage
from inference.engine.worker import EngineWorker
from tests.bench.instant_engine import InstantEngine

MAX_STREAMS = 64


def main(deployment: str, redis_url: str, step_s: str = "0") -> None:
    """Serve until told to drain."""

    def open_engine(tell_stage: TellStage) -> Engine:
        """What the worker calls in place of loading a model."""
        tell_stage("instant")
        return InstantEngine(MAX_STREAMS, float(step_s))

    worker = EngineWorker(
        replica="instant-replica",
        deployment=deployment,
        redis_url=redis_url,
        open_engine=open_engine,
        max_streams=MAX_STREAMS,
    )
    worker.work()


if __name__ == "__main__":
    main(*sys.argv[1:])
