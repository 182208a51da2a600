"""A real vLLM engine whose checks before a sleep and after a wake are tried: what they say, as one JSON line."""

from __future__ import annotations

import json
import sys

from inference.engine import environment
from inference.protocol import EngineOptions


def main(model_path: str) -> None:
    environment.prepare(on_cpu=True)
    from inference.engine.adapter import VllmEngine

    options = EngineOptions(
        dtype="float32", context_length=128, max_streams=2, kv_cache_bytes=64 * 2**20, prefix_caching=False
    )
    engine = VllmEngine(model_path, options)
    found = {"rungs": engine.rungs}
    found["before"] = [engine.fingerprint(), engine.canary()]
    found["after"] = [engine.fingerprint(), engine.canary()]
    found["busy"] = engine.is_busy()
    for worker in [engine._engine.engine_core.engine_core.model_executor.driver_worker.worker]:
        for parameter in worker.model_runner.model.parameters():
            parameter.data.zero_()
    found["zeroed"] = [engine.fingerprint(), engine.canary()]
    print(json.dumps(found), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
