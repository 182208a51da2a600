"""Workers in processes of their own, and a gateway to talk to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.engine.gateway import TestGateway, poll

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
