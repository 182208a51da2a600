"""Fixtures that every test may use: a real Redis, a real PostgreSQL, a place for data."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from tests.settings import SESSION_DIR

# How long an example takes says how busy the machine is, not whether the code is right.
# The same examples each time, as Hypothesis' own profile for CI has it; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def start_redis(socket: Path, *options: str) -> subprocess.Popen[bytes]:
    """A real Redis server on a unix socket, gone with this process's end by its caller."""
    process = subprocess.Popen(
        [
            "redis-server",
            "--unixsocket",
            str(socket),
            "--port",
            "0",
            "--save",
            "",
            "--dir",
            str(socket.parent),
            *options,
        ],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(unix_socket_path=str(socket))
    until = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            if time.monotonic() > until or process.poll() is not None:
                raise
            time.sleep(0.01)
    client.close()
    return process


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of the Redis that settings.REDIS_URL names, running for the whole session."""
    url = os.environ["REDIS_URL"]
    process = start_redis(Path(url.removeprefix("unix://")))
    yield url
    process.terminate()
    process.wait(10)


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The session's Redis, empty."""
    client = redis.Redis.from_url(redis_server)
    client.flushall()
    yield redis_server
    client.flushall()
    client.close()


@pytest.fixture(scope="session", autouse=True)
def _session_dir() -> Iterator[Path]:
    yield SESSION_DIR
    shutil.rmtree(SESSION_DIR, ignore_errors=True)
