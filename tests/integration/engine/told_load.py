"""``python -m tests.integration.engine.told_load MODEL``: load it with real vLLM; what was told of that, as JSON."""

from __future__ import annotations

import json
import sys

from inference.engine import environment
from inference.protocol import EngineOptions


def main(model_path: str) -> None:
    environment.prepare(on_cpu=True)
    from inference.engine.adapter import VllmEngine

    told: list[tuple[str, int | None, int | None]] = []
    options = EngineOptions(context_length=256, max_streams=4, kv_cache_bytes=64 * 2**20)
    engine = VllmEngine(
        model_path, options, lambda stage, done=None, total=None: told.append((stage, done, total))
    )
    print("told " + json.dumps({"stages": told, "weights": engine.memory()["weights"]}))


if __name__ == "__main__":
    main(sys.argv[1])
