"""Real vLLM: two replicas of which one dies, loads that fail for real, a controller killed while it places."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import psutil
import psycopg
import pytest
import redis

from inference.protocol import ReplicaBeat, beat_key
from tests.checkpoints import damage
from tests.e2e.conftest import RealServers, expect
from tests.e2e.platform import ALIVE, ROOT, Platform, wait_until
from tests.e2e.reader import GREEDY, Reader

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(480)]

# What an engine may map beyond what its template has: enough for its threads, not for weights and cache.
ROOM_BYTES = 900 * 2**20


@pytest.fixture(autouse=True)
def _served(breakable: Platform) -> Iterator[None]:
    """Every test starts, and leaves, with one replica that serves."""
    breakable.wait_ready("smol")
    yield
    expect(breakable.http.post("/v1/models/smol/load", json={"replicas": 1}), 202)
    breakable.wait_ready("smol")
    breakable.books_balance()


@pytest.fixture
def both(breakable: Platform, servers: RealServers) -> list[tuple[str, psutil.Process]]:
    """Two replicas of the one version, with their processes."""
    expect(breakable.http.post("/v1/models/smol/load", json={"replicas": 2}), 202)
    wait_until(lambda: len(_ready(breakable)) == 2, 90, "both replicas are ready")
    return [(replica, psutil.Process(pid)) for replica, pid in _ready(breakable)]


def test_a_text_whose_engine_is_killed_goes_on_in_the_other_replica(
    breakable: Platform, servers: RealServers, undisturbed: str, both: list[tuple[str, psutil.Process]]
) -> None:
    reader = Reader(breakable, GREEDY)
    wait_until(lambda: reader.chunks >= 10, 60, "ten chunks have come")
    [busy] = wait_until(
        lambda: [engine for replica, engine in both if _beat(servers, replica).running],
        5,
        "one says that it works",
    )
    [other] = [replica for replica, engine in both if engine != busy]
    before = _beat(servers, other).steps
    busy.kill()
    reader.finished()
    assert (reader.error, reader.finish) == (None, "length")
    assert reader.text == undisturbed
    wait_until(lambda: _beat(servers, other).steps > before, 5, "the other one made the rest")
    breakable.books_balance()


def test_requests_whose_engine_is_killed_before_their_first_token_are_answered_by_the_other_replica(
    breakable: Platform, undisturbed: str, both: list[tuple[str, psutil.Process]]
) -> None:
    for _, engine in both:
        engine.suspend()
    readers = [Reader(breakable, GREEDY) for _ in range(4)]
    wait_until(lambda: _asked(breakable) == 4, 20, "the requests are enqueued")
    both[0][1].kill()
    both[1][1].resume()
    for reader in readers:
        reader.finished()
        assert (reader.error, reader.text) == (None, undisturbed)
    breakable.books_balance()


@pytest.fixture
def neighbour(breakable: Platform, request: pytest.FixtureRequest) -> Iterator[str]:
    """One more version with files of its own, not loaded: its id."""
    label = f"n{abs(hash(request.node.name)) % 10**6}"
    http = breakable.http
    first = expect(http.get("/v1/registry/versions?version=1"), 200)["results"][0]
    body = {"model": first["model"], "version": label, "source_uri": first["source_uri"]}
    version = expect(http.post("/v1/registry/versions", json=body), 201)
    expect(http.post(f"/v1/registry/versions/{version['id']}/import", json={}), 202)
    name = f"smol@{label}"
    wait_until(lambda: breakable.status(name)["status"] == "unloaded", 60, "it is imported")
    yield name
    http.post(f"/v1/models/{name}/unload", json={})
    wait_until(lambda: breakable.status(name)["status"] in ("unloaded", "failed"), 60, "it is unloaded")


def test_a_load_that_gets_no_memory_fails_alone_says_why_backs_off_and_ends(
    breakable: Platform, undisturbed: str, neighbour: str
) -> None:
    http = breakable.http
    [template] = breakable.processes("inference.node.template")
    served = breakable.engine("smol")
    reader = Reader(breakable, {**GREEDY, "max_tokens": 600})
    wait_until(lambda: reader.chunks >= 3, 60, "a neighbour streams")
    # The device's budget says that there is room; the kernel says that there is not.
    lie = template.memory_info().vms + ROOM_BYTES
    template.rlimit(psutil.RLIMIT_AS, (lie, resource.RLIM_INFINITY))
    try:
        expect(http.post(f"/v1/models/{neighbour}/load", json={}), 202)
        wait_until(
            lambda: (breakable.status(neighbour)["reason"] or "").startswith("given up after 5 tries"),
            300,
            "the load is given up",
        )
    finally:
        template.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said = breakable.status(neighbour)
    assert said["status"] == "failed"
    assert "memory" in said["reason"], said
    deployment = _deployment(breakable, neighbour)
    assert deployment["failure"] == said["reason"]
    assert len(deployment["log_tail"].splitlines()) > 1
    assert "memory" in deployment["log_tail"]
    waits = _waits_between_tries(breakable, deployment["name"])
    assert len(waits) == 4
    assert all(wait >= 2**number for number, wait in enumerate(waits)), waits

    breakable.books_balance()
    assert served.is_running()
    assert reader.finished().error is None
    assert Reader(breakable, GREEDY).finished().text == undisturbed

    expect(http.post(f"/v1/models/{neighbour}/load", json={}), 202)
    wait_until(lambda: breakable.status(neighbour)["status"] == "ready", 90, "with memory it loads")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("noticed", ["by its stamp", "by the engine"])
def test_a_corrupt_file_fails_the_load_with_its_name(
    breakable: Platform, undisturbed: str, neighbour: str, noticed: str, file: str
) -> None:
    label = neighbour.partition("@")[2]
    [(path,)] = breakable.rows(f"SELECT path FROM registry_modelversion WHERE version = '{label}'")
    damage(breakable.data_dir / "models" / path / file, keep_time=noticed == "by the engine")
    served = breakable.engine("smol")
    expect(breakable.http.post(f"/v1/models/{neighbour}/load", json={}), 202)
    blame = f"{file} has the SHA-256"
    wait_until(lambda: blame in (breakable.status(neighbour)["reason"] or ""), 60, "its file is blamed")
    said = breakable.status(neighbour)
    assert said["status"] == "failed"
    if noticed == "by the engine":
        assert "exited with code" in said["reason"], "what the engine said of it"
    expect(breakable.http.post(f"/v1/models/{neighbour}/unload", json={}), 202)
    breakable.books_balance()
    assert served.is_running()
    assert Reader(breakable, GREEDY).finished().text == undisturbed


def test_a_controller_killed_in_the_middle_of_a_placement_is_followed_by_another_that_places_once(
    breakable: Platform, servers: RealServers, undisturbed: str
) -> None:
    [leader] = breakable.processes("manage.py controller")
    standby = subprocess.Popen(
        [sys.executable, str(ROOT / "manage.py"), "controller"],
        env=breakable.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        engine = breakable.engine("smol")
        with psycopg.connect(servers.database_url) as lock:
            # A node that has just reported writes nothing on its devices before it has seen that the engine is gone.
            seen = _last_report(breakable)
            wait_until(lambda: _last_report(breakable) != seen, 10, "the node has reported")
            time.sleep(0.3)
            engine.kill()
            # Whoever places holds the devices while it does: it waits here, its transaction open.
            lock.execute("SELECT id FROM inference_device FOR UPDATE")
            held = Reader(breakable, GREEDY)
            wait_until(lambda: _placing(breakable), 30, "the controller is in the middle of a placement")
            leader.kill()
            leader.wait(10)
        held.finished()
        assert (held.error, held.text) == (None, undisturbed)
        assert _alive(breakable) == 1
        breakable.books_balance()
    finally:
        standby.send_signal(signal.SIGTERM)
        assert standby.wait(20) == 0


def _ready(platform: Platform) -> list[tuple[str, int]]:
    rows = platform.rows("SELECT id, pid FROM inference_replica WHERE state = 'ready' ORDER BY created_at")
    return [(str(replica), pid) for replica, pid in rows]


def _alive(platform: Platform) -> int:
    return int(platform.rows(f"SELECT count(*) FROM inference_replica WHERE state IN {ALIVE}")[0][0])


def _beat(servers: RealServers, replica: str) -> ReplicaBeat:
    with redis.Redis(unix_socket_path=str(servers.socket)) as client:
        return msgspec.json.decode(client.get(beat_key(replica)) or b"", type=ReplicaBeat)


def _last_report(platform: Platform) -> list[tuple[object, ...]]:
    return platform.rows("SELECT last_seen FROM inference_node")


def _asked(platform: Platform) -> int:
    """Requests that the deployment has in its queue or in hand."""
    with redis.Redis.from_url(platform.environment["REDIS_URL"]) as client:
        return int(client.llen("rq:queue:smol-1.normal")) + int(client.zcard("rq:wip:smol-1.normal"))


def _placing(platform: Platform) -> bool:
    waiting = platform.rows(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'inference_device.* FOR UPDATE'"
    )
    return bool(waiting)


def _deployment(platform: Platform, served_id: str) -> dict[str, Any]:
    found = expect(platform.http.get("/v1/registry/deployments"), 200)["results"]
    return next(row for row in found if row["served_id"] == served_id)


def _waits_between_tries(platform: Platform, deployment: str) -> list[float]:
    """Seconds from the end of each try to the begin of the next."""
    rows = platform.rows(
        "SELECT extract(epoch FROM r.created_at), extract(epoch FROM r.ended_at) FROM inference_replica r "
        f"JOIN inference_deployment d ON d.id = r.deployment_id WHERE d.name = '{deployment}' ORDER BY r.created_at"
    )
    return [float(rows[at + 1][0] - rows[at][1]) for at in range(len(rows) - 1)]
