"""Workers in processes of their own, and a gateway to talk to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from inference.engine import environment
from inference.protocol import EngineOptions, ReplicaSpec
from tests.conftest import start_redis
from tests.integration.engine.gateway import TestGateway, poll

REAL = "real"  # the replica and the deployment of the real engine
CONTEXT = 256
CHECKOUT = Path(__file__).parents[3]

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start a Python module in a process; none outlives the test. A failing test shows their logs."""
    processes: list[subprocess.Popen[bytes]] = []
    logs: list[Path] = []

    def start(module: str, *args: str) -> subprocess.Popen[bytes]:
        log = tmp_path / f"{len(logs)}.log"
        logs.append(log)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *args], stdout=file, stderr=file, env=dict(os.environ)
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(10)
    for log in logs:
        print(log.read_text(errors="replace")[-6000:])


@pytest.fixture
async def gateway(redis_url: str) -> AsyncIterator[TestGateway]:
    found = TestGateway(redis_url, "stub")
    await found.open()
    yield found
    await found.close()


@pytest.fixture
def worker(
    spawn: Spawn, redis_url: str, gateway: TestGateway
) -> Callable[..., Awaitable[subprocess.Popen[bytes]]]:
    """Start a stub worker and wait until it is ready."""

    async def start(replica: str = "r1", max_streams: int = 16) -> subprocess.Popen[bytes]:
        process = spawn("tests.integration.engine.stubs", redis_url, replica, str(max_streams))
        await poll(lambda: (beat := gateway.beat(replica)) and beat.state == "ready", f"{replica} ready")
        return process

    return start


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as safetensors: the checkout's cached one, else fetched and converted."""
    cached = CHECKOUT / ".cache" / "models" / "smollm2-135m-instruct"
    if (cached / "model.safetensors").exists():
        return cached
    from registry.demo import DEMO_MODELS
    from registry.gguf_import import convert
    from registry.sources import Wanted, source_for

    fetched, converted = tmp_path_factory.mktemp("gguf"), tmp_path_factory.mktemp("smollm2")
    [model] = [model for model in DEMO_MODELS if model.name == "smollm2-135m-instruct"]
    source_for(model.source_uri).fetch(fetched, lambda done, total: None, Wanted())
    convert(next(fetched.glob("*.gguf")), converted, lambda done, total: None)
    return converted


@pytest.fixture(scope="module")
def vllm_redis() -> Iterator[str]:
    """A Redis of the real engine's own: other tests count the workers that they see."""
    socket = Path(tempfile.mkdtemp(prefix="mms-")) / "redis.sock"
    process = start_redis(socket)
    yield f"unix://{socket}"
    process.terminate()
    process.wait(10)
    shutil.rmtree(socket.parent, ignore_errors=True)


@contextmanager
def vllm_engine(spec: ReplicaSpec, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real engine in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.integration.engine.vllm_engine",
        msgspec.json.encode(spec).decode(),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "LD_PRELOAD": environment.preload()}
        )
    yield process
    process.kill()
    process.wait(10)
    print(log.read_text(errors="replace")[-6000:])


async def is_up(gateway: TestGateway, replica: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until it serves."""

    def is_ready() -> bool:
        assert process.poll() is None, "the engine ended"
        beat = gateway.beat(replica)
        return beat is not None and beat.state == "ready"

    await poll(is_ready, "a ready vLLM engine", wait_s=170)


@pytest.fixture(scope="module")
def vllm_process(
    vllm_redis: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    """One real engine for a module: SmolLM2 in float32, so that texts can be compared."""
    log = tmp_path_factory.mktemp("vllm") / "engine.log"
    spec = ReplicaSpec(
        replica=REAL,
        deployment=REAL,
        served_id="smollm2@float32",
        model_path=str(smollm2),
        redis_url=vllm_redis,
        options=EngineOptions(
            dtype="float32", context_length=CONTEXT, max_streams=16, kv_cache_bytes=256 * 2**20
        ),
        log_path=str(log),
    )
    with vllm_engine(spec, log) as process:
        yield process


@pytest.fixture
async def vllm(vllm_redis: str, vllm_process: subprocess.Popen[bytes]) -> AsyncIterator[TestGateway]:
    """A gateway to the real engine."""
    found = TestGateway(vllm_redis, REAL)
    await found.open()

    await is_up(found, REAL, vllm_process)
    yield found
    await found.close()
