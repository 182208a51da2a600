"""What may die or freeze, one after another: no request is lost, and the memory comes back.

Everything is real but the engine, which counts (tests/counting_engine.py); test_promises.py does the like with vLLM.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.checkpoints import damage
from tests.counting_engine import counted, spoil
from tests.e2e.conftest import expect
from tests.e2e.platform import ALIVE, Platform, SecondNode, wait_until
from tests.e2e.reader import Reader

pytestmark = pytest.mark.timeout(120)

TOKENS = 300
MANY_TOKENS = 1500  # fifteen seconds
BODY = {"model": "count", "prompt": "one two", "temperature": 0, "max_tokens": TOKENS}


@pytest.fixture
def second(counting: Platform) -> Iterator[SecondNode]:
    """A second node, each of both with one replica of ``count``."""
    _unload(counting)
    heard = _heard_of(counting, "second")
    node = counting.start_node("second")
    try:
        wait_until(lambda: _heard_of(counting, "second") != heard, 30, "the second node is heard of")
        expect(counting.http.post("/v1/models/count/load", json={"replicas": 2}), 202)
        wait_until(lambda: _places(counting) == ["first", "second"], 40, "both nodes serve")
        wait_until(lambda: _ready(counting) == 2, 40, "both replicas are ready")
        yield node
    finally:
        node.kill()


@pytest.fixture
def one(counting: Platform) -> Platform:
    """One replica, on the platform's own node."""
    expect(counting.http.post("/v1/models/count/load", json={"replicas": 1}), 202)
    wait_until(lambda: _places(counting) == ["first"] and _ready(counting) == 1, 40, "one replica serves")
    counting.wait_ready("count")
    return counting


@pytest.mark.parametrize("frozen", ["the whole machine", "only its node"])
def test_a_node_that_freezes_is_replaced_and_refused_when_it_comes_back(
    counting: Platform, second: SecondNode, frozen: str
) -> None:
    readers = _readers_on_both(counting)
    [engine] = second.engines()
    [lost] = _replicas_on(counting, "second")
    if frozen == "the whole machine":
        engine.suspend()
    psutil.Process(second.process.pid).suspend()

    wait_until(lambda: _places(counting) == ["first", "first"], 40, "the lost replica is placed anew")
    if frozen == "the whole machine":
        # Its engine wakes before its node does, and has never heard that it was given up.
        engine.resume()
    wait_until(lambda: not _lives(engine), 20, "the engine that was given up ends by itself")
    for reader in readers:
        reader.finished()
        assert (reader.error, reader.text) == (None, counted(TOKENS))

    heard = _heard_of(counting, "second")
    psutil.Process(second.process.pid).resume()
    wait_until(lambda: _heard_of(counting, "second") != heard, 20, "the node is heard of again")
    wait_until(lambda: not psutil.pid_exists(engine.pid), 20, "the node has buried its engine")
    [(state, reason, reserved)] = counting.rows(
        "SELECT state, reason, (SELECT count(*) FROM inference_replica r JOIN inference_device d ON d.id = r.device_id "
        f"JOIN inference_node n ON n.id = d.node_id WHERE n.name = 'second' AND r.state IN {ALIVE}) "
        f"FROM inference_replica WHERE id = '{lost}'"
    )
    assert (state, reserved) == ("failed", 0)
    assert reason.startswith("node second has not reported since"), (
        "a late message has changed what was decided"
    )
    counting.books_balance(second)


def test_a_node_that_is_asked_to_stop_drains_and_ends_with_0(counting: Platform, second: SecondNode) -> None:
    readers = _readers_on_both(counting)
    engines = second.engines()
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(60) == 0
    assert not [engine for engine in engines if psutil.pid_exists(engine.pid)]
    for reader in readers:
        reader.finished()
        assert (reader.error, reader.text) == (None, counted(TOKENS))
    wait_until(lambda: _places(counting) == ["first", "first"], 40, "its replica is placed anew")
    states = counting.rows(
        "SELECT r.state, r.reason FROM inference_replica r JOIN inference_device d ON d.id = r.device_id "
        "JOIN inference_node n ON n.id = d.node_id WHERE n.name = 'second' ORDER BY r.created_at DESC LIMIT 1"
    )
    assert states == [("stopped", "drained")]
    wait_until(lambda: _ready(counting) == 2, 30, "both replicas are ready")
    counting.books_balance(second)


def test_of_two_nodes_of_one_name_the_older_one_ends_with_its_engines(
    counting: Platform, second: SecondNode
) -> None:
    [engine] = second.engines()
    namesake = counting.start_node("second")
    try:
        assert second.process.wait(30) == 1
        wait_until(lambda: not psutil.pid_exists(engine.pid), 10, "its engine is gone")
        wait_until(lambda: _ready(counting) == 2, 40, "both replicas are ready again")
        counting.books_balance(SecondNode("second", namesake.process))
    finally:
        namesake.kill()


def test_an_engine_that_hangs_while_its_heart_beats_is_found_by_its_lack_of_progress(one: Platform) -> None:
    engine = one.engine("count")
    reader = Reader(one, {**BODY, "max_tokens": MANY_TOKENS})
    wait_until(lambda: reader.chunks >= 5, 30, "the stream runs")
    engine.send_signal(signal.SIGUSR1)
    reader.finished()
    assert (reader.error, reader.text) == (None, counted(MANY_TOKENS))
    assert not psutil.pid_exists(engine.pid)
    [(reason,)] = one.rows(f"SELECT reason FROM inference_replica WHERE pid = {engine.pid}")
    assert reason == "killed: no engine step for 3 s"
    one.books_balance()


def test_a_load_that_hangs_is_ended_and_tried_again(one: Platform) -> None:
    _unload(one)
    stuck = spoil(one.data_dir, "stuck")
    stuck.touch()
    expect(one.http.post("/v1/models/count/load", json={}), 202)
    said = wait_until(lambda: (found := one.status("count@1"))["reason"] and found, 40, "it has failed")
    assert (said["status"], said["reason"]) == ("failed", "killed: it was not loaded within 10 s")
    stuck.unlink()
    one.wait_ready("count")
    one.books_balance()


@pytest.mark.parametrize("file", ["model-1.safetensors", "tokenizer_config.json"])
def test_a_damaged_file_that_looks_untouched_is_named_and_the_load_not_tried_again_until_it_is_repaired(
    one: Platform, file: str
) -> None:
    _unload(one)
    [(version, path)] = one.rows("SELECT id, path FROM registry_modelversion WHERE version = '1'")
    damage(one.data_dir / "models" / path / file, keep_time=True)
    expect(one.http.post("/v1/models/count/load", json={}), 202)
    wait_until(lambda: file in (one.status("count@1")["reason"] or ""), 40, "the file is named")
    wait_until(lambda: _places(one) == [], 20, "no try is on its way")
    said = one.status("count@1")
    assert said["status"] == "failed"
    assert said["reason"].startswith(f"count@1: {file} has the SHA-256 ")
    assert "exited with code 70: " in said["reason"], "what the engine said of it"
    tries = one.rows("SELECT count(*) FROM inference_replica WHERE state = 'failed' AND NOT superseded")
    assert tries[0][0] <= 2, "it fails once, and may fail again while its files are hashed"
    events = expect(one.http.get("/v1/registry/events?kind=version.damaged"), 200)["results"]
    assert file in events[0]["data"]

    repaired = "SELECT count(*) FROM registry_event WHERE kind = 'version.repaired'"
    before = one.rows(repaired)[0][0]
    expect(one.http.post(f"/v1/registry/versions/{version}/verify", json={"repair": True}), 202)
    wait_until(lambda: one.rows(repaired)[0][0] > before, 40, "it is repaired")
    expect(one.http.post("/v1/models/count/load", json={}), 202)
    one.wait_ready("count")
    one.books_balance()


def test_what_is_preloaded_comes_up_when_a_node_starts_and_is_warmed_up(one: Platform) -> None:
    [row] = expect(one.http.get("/v1/registry/deployments?name=count-1"), 200)["results"]
    path = f"/v1/registry/deployments/{row['id']}"
    expect(one.http.patch(path, json={"preload": True, "warmup_prompts": ["one", "two"]}), 200)
    try:
        _unload(one)
        [node] = one.processes("manage.py node")
        node.kill()
        wait_until(lambda: _ready(one) == 1, 40, "it is up again")
        [(log,)] = one.rows("SELECT log_path FROM inference_replica WHERE state = 'ready'")
        assert "warmed up with 2 of 2 prompts" in Path(log).read_text()
        one.books_balance()
    finally:
        expect(one.http.patch(path, json={"preload": False, "warmup_prompts": []}), 200)


@pytest.mark.parametrize("trouble", ["dies before", "dies during", "freezes during"])
def test_a_template_that_dies_or_freezes_around_a_fork_is_replaced_and_the_load_succeeds(
    one: Platform, trouble: str
) -> None:
    _unload(one)
    [template] = one.processes("inference.node.template")
    if trouble == "dies before":
        template.kill()
    else:
        template.suspend()
    expect(one.http.post("/v1/models/count/load", json={}), 202)
    wait_until(lambda: _knows_the_wish(one), 10, "the gateway holds requests for it")
    held = Reader(one, BODY)
    if trouble == "dies during":
        wait_until(lambda: _places(one) == ["first"], 20, "the load is with the node")
        template.kill()
    held.finished()
    assert (held.error, held.text) == (None, counted(TOKENS))
    assert [process.pid for process in one.processes("inference.node.template")] != [template.pid]
    one.books_balance()


def _unload(platform: Platform) -> None:
    if _places(platform):
        expect(platform.http.post("/v1/models/count/unload", json={}), 202)
    wait_until(lambda: _places(platform) == [] and not _knows_the_wish(platform), 40, "it is unloaded")


def _knows_the_wish(platform: Platform) -> bool:
    return bool(platform.http.post("/v1/routing/explain", json=BODY).json()["chosen"])


def _readers_on_both(platform: Platform) -> list[Reader]:
    """Enough streams that both replicas have some."""
    readers = [Reader(platform, BODY) for _ in range(12)]
    wait_until(lambda: all(reader.chunks >= 5 for reader in readers), 30, "the streams run")
    return readers


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _heard_of(platform: Platform, node: str) -> str | None:
    found = platform.rows(f"SELECT last_seen FROM inference_node WHERE name = '{node}' AND NOT leaving")
    return found[0][0] if found else None


def _places(platform: Platform) -> list[str]:
    """The nodes of the replicas that are up or on their way."""
    rows = platform.rows(
        "SELECT n.name FROM inference_replica r JOIN inference_device d ON d.id = r.device_id "
        f"JOIN inference_node n ON n.id = d.node_id WHERE r.state IN {ALIVE} ORDER BY n.name"
    )
    return [name for (name,) in rows]


def _replicas_on(platform: Platform, node: str) -> list[str]:
    rows = platform.rows(
        "SELECT r.id FROM inference_replica r JOIN inference_device d ON d.id = r.device_id "
        f"JOIN inference_node n ON n.id = d.node_id WHERE r.state IN {ALIVE} AND n.name = '{node}'"
    )
    return [replica for (replica,) in rows]


def _ready(platform: Platform) -> int:
    return int(platform.rows("SELECT count(*) FROM inference_replica WHERE state = 'ready'")[0][0])
