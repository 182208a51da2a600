"""The peers of the gateway, each as one process in front of the instant backend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import instant_backend, peers
from tests.bench.load import Target
from tests.bench.processes import free_port, running, status_of, wait_until

_LITELLM_KEY = "sk-bench-0123456789"
_LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: {backend}/v1
      api_key: unused
general_settings:
  master_key: {key}
"""


@contextmanager
def backend(work: Path) -> Iterator[Target]:
    """The instant backend itself: what the load generator and the machine could do at most."""
    port = free_port()
    log = work / "instant-backend.log"
    with running([sys.executable, "-m", "tests.bench.instant_backend", str(port)], log) as process:
        wait_until(lambda: status_of(port, "/health") == 200, process, log)
        yield Target(url=f"http://127.0.0.1:{port}", model=instant_backend.MODEL)


@contextmanager
def litellm(behind: Target, work: Path) -> Iterator[Target]:
    """LiteLLM's proxy with one worker, a master key and no logs: its fastest honest setting."""
    peers.need(peers.LITELLM)
    port = free_port()
    config = work / "litellm.yaml"
    config.write_text(_LITELLM_CONFIG.format(model=behind.model, backend=behind.url, key=_LITELLM_KEY))
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    log = work / "litellm.log"
    command: list[str | Path] = [peers.HOME / "bin" / "litellm", "--config", config, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    with running(command, log, env) as process:
        wait_until(lambda: status_of(port, "/health/liveliness") == 200, process, log)
        yield Target(url=f"http://127.0.0.1:{port}", model=behind.model, api_key=_LITELLM_KEY)


@contextmanager
def vllm_router(behind: Target, work: Path) -> Iterator[Target]:
    """vllm-router (Rust) with round robin over one worker and no keys: it has no users."""
    peers.need(peers.VLLM_ROUTER)
    port = free_port()
    log = work / "vllm-router.log"
    command: list[str | Path] = [
        peers.HOME / "bin" / "vllm-router",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--worker-urls", behind.url, "--policy", "round_robin", "--log-level", "error"]
    command += ["--prometheus-port", str(free_port())]
    with running(command, log) as process:
        wait_until(lambda: status_of(port, "/health") == 200, process, log)
        yield Target(url=f"http://127.0.0.1:{port}", model=behind.model)
