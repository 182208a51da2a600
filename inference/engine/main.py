"""Runs one engine worker from a ReplicaSpec, in a process that has vLLM's environment set."""

from __future__ import annotations

import logging
import os

from inference.engine.base import Engine, TellStage
from inference.engine.choice import engine_class, is_vllm
from inference.engine.worker import EngineWorker
from inference.protocol import ReplicaSpec

EXIT_DRAINED = 0
EXIT_ENGINE_DEAD = 70  # sysexits' EX_SOFTWARE

logger = logging.getLogger(__name__)


def serve(spec: ReplicaSpec) -> int:
    """Load the model, serve its queues, and return the exit code."""

    def open_engine(tell_stage: TellStage) -> Engine:
        tell_stage("importing the engine")
        more = {"forms": spec.forms} if is_vllm() else {}
        engine: Engine = engine_class()(spec.model_path, spec.options, tell_stage, **more)
        return engine

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logger.info("replica %s of %s starts with pid %d", spec.replica, spec.served_id, os.getpid())
    try:
        worker = EngineWorker(
            replica=spec.replica,
            deployment=spec.deployment,
            redis_url=spec.redis_url,
            open_engine=open_engine,
            max_streams=spec.options.max_streams,
            drain_s=spec.drain_s,
            warmup_prompts=spec.warmup_prompts,
        )
        worker.work()
    except Exception:
        logger.exception("replica %s ends", spec.replica)
        return EXIT_ENGINE_DEAD
    return EXIT_DRAINED
