"""``python -m tests.bench.instant_worker DEPLOYMENT REDIS_URL``: the real worker, the instant engine."""

from __future__ import annotations

import sys
from collections.abc import Callable

from inference.engine.base import Engine
from inference.engine.worker import EngineWorker
from tests.bench.instant_engine import InstantEngine

MAX_STREAMS = 64


def open_engine(tell_stage: Callable[[str], None]) -> Engine:
    """What the worker calls in place of loading a model."""
    tell_stage("instant")
    return InstantEngine(MAX_STREAMS)


def main(deployment: str, redis_url: str) -> None:
    """Serve until told to drain."""
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
