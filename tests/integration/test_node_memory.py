"""A node's agent over real rows and a real Redis; its processes are only written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from inference import actions as serving
from inference.calibration import options_key, options_of
from inference.memory import device_rooms, estimate_for, need_of
from inference.models import Deployment, Device, LoadObservation, Replica, ReplicaState
from inference.node import agent as agents
from inference.node.agent import NodeAgent
from inference.node.devices import LocalDevice
from inference.node.supervisor import ReplicaExit
from inference.node.usage import Usage
from inference.notify import connection
from inference.observation_metrics import Observations
from inference.protocol import ReplicaBeat, ReplicaSpec, beat_key
from inference.reconcile import reconcile
from inference.status import statuses
from registry import actions
from registry.models import ModelVersion, VersionState

GIB, MIB = 2**30, 2**20
H100 = "NVIDIA H100 80GB HBM3"
MEASURED = {"weights": 600 * MIB, "kv_cache": 512 * MIB, "runtime": 400 * MIB}


class Processes:
    """A supervisor that starts nothing."""

    template_ready = True
    template_failure = ""

    def __init__(self) -> None:
        self.replicas: list[str] = []
        self.started: list[ReplicaSpec] = []
        self.ends: list[ReplicaExit] = []

    def start(self, spec: ReplicaSpec) -> int:
        self.started.append(spec)
        self.replicas.append(spec.replica)
        return 4_000_000 + len(self.started)

    def pid_of(self, replica: str) -> int | None:
        return None

    def poll(self) -> list[ReplicaExit]:
        ended, self.ends = self.ends, []
        for one in ended:
            self.replicas.remove(one.replica)
        return ended


Machine = Callable[..., tuple[NodeAgent, Processes]]
Make = Callable[..., Deployment]


@pytest.fixture
def machine(
    db: None, redis_url: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    """A node with these devices (one with 8 GiB of host memory if none are named), heard of at every tick."""
    settings.DATA_DIR = tmp_path
    monkeypatch.setattr(agents, "REPORT_EVERY_S", 0)

    def made(*devices: LocalDevice) -> tuple[NodeAgent, Processes]:
        found = list(devices) or [LocalDevice("cpu:0", "cpu", 16 * GIB, 8 * GIB)]
        monkeypatch.setattr(agents, "local_devices", lambda _bytes: found)
        monkeypatch.setattr(agents, "usage", lambda _devices, _engines: {})
        processes = Processes()
        agent = NodeAgent("here", processes)  # type: ignore[arg-type]
        agent.files = SimpleNamespace(  # type: ignore[assignment]
            folders=lambda _key, versions: [tmp_path / str(one.pk) for one in versions],
            held=lambda _key: [],
            release=lambda _key: None,
        )
        return agent, processes

    return made


@pytest.fixture
def make(db: None, redis_url: str, tmp_path: Path) -> Make:
    """A ready version with its deployment, loaded through the action."""
    model = actions.register_model("acme/many", actor="tests")

    def made(name: str, **options: Any) -> Deployment:
        version = actions.register_version(model, name, f"file://{tmp_path}/{name}", actor="tests")
        facts = {"weight_bytes": GIB // 2, "parameters": GIB // 4, "vocabulary": 1000}
        ModelVersion.objects.filter(pk=version.pk).update(state=VersionState.READY, facts=facts)
        version.refresh_from_db()
        deployment = serving.ensure_deployment(version, actor="tests")
        if options:
            deployment = serving.configure(deployment, options, actor="tests")
        return serving.load(version, actor="tests")

    return made


def beat(replica: Replica, **fields: Any) -> None:
    found = ReplicaBeat(
        replica=str(replica.pk), deployment=replica.deployment.name, worker="w", state="ready", **fields
    )
    connection().set(beat_key(str(replica.pk)), msgspec.json.encode(found))


def reserved() -> int:
    return sum(room.reserved_bytes for room in device_rooms())


def test_loads_on_one_device_come_one_after_the_other(machine: Machine, make: Make) -> None:
    agent, processes = machine()
    first, second = make("a"), make("b")
    reconcile()
    agent.tick()
    agent.tick()

    assert [spec.deployment for spec in processes.started] == [first.name]
    waiting = statuses([second.version])[second.version_id]
    assert (waiting.status, waiting.stage) == ("loading", "pending")

    beat(first.replica_set.get(), memory=MEASURED)
    agent.tick()
    agent.tick()
    assert [spec.deployment for spec in processes.started] == [first.name, second.name]


def test_a_load_that_fails_lets_the_next_one_begin_and_gives_its_memory_back(
    machine: Machine, make: Make
) -> None:
    agent, processes = machine()
    first, second = make("a"), make("b")
    reconcile()
    agent.tick()
    both = reserved()

    failed = first.replica_set.get()
    processes.ends.append(ReplicaExit(str(failed.pk), failed.pid or 0, "out of memory", "", 1))
    agent.tick()

    assert [spec.deployment for spec in processes.started] == [first.name, second.name]
    assert reserved() == both - failed.reserved_bytes


def test_what_a_load_took_is_written_down_reserved_and_expected_of_the_next(
    machine: Machine, make: Make
) -> None:
    agent, _ = machine()
    deployment = make("a", max_streams=8)
    reconcile()
    replica = deployment.replica_set.get()
    predicted = estimate_for(deployment)
    assert replica.reserved_bytes == predicted.total_bytes

    agent.tick()
    beat(replica, memory=MEASURED, peak_running=1)
    agent.tick()

    row = LoadObservation.objects.get()
    assert row.predicted == predicted.parts()
    assert row.measured == MEASURED
    assert row.error == pytest.approx(
        (predicted.total_bytes - predicted.activations_bytes) / sum(MEASURED.values()) - 1
    )
    # A full batch was not seen yet: what it may take stays reserved.
    replica.refresh_from_db()
    assert replica.reserved_bytes == sum(MEASURED.values()) + predicted.activations_bytes

    seen = {**MEASURED, "activations": 30 * MIB}
    beat(replica, memory=seen, peak_running=8)
    agent.tick()
    replica.refresh_from_db()
    assert replica.reserved_bytes == reserved() == sum(seen.values())

    again = estimate_for(deployment)
    assert (again.total_bytes, again.calibrated) == (sum(seen.values()), True)
    [error, sizes] = Observations().collect()
    [sample] = error.samples
    assert sample.labels == {"model": "acme/many@a", "device_kind": "cpu", "quantization": ""}
    row.refresh_from_db()
    assert sample.value == row.error
    assert {one.labels["part"] for one in sizes.samples} == {"weights", "kv_cache", "activations", "runtime"}


def test_an_engine_reads_its_drafts_files_and_its_memory_is_that_of_both(
    machine: Machine, make: Make
) -> None:
    agent, processes = machine()
    deployment = make("a", max_streams=8)
    plain = options_key(deployment)
    assert "draft" not in options_of(deployment)
    draft = make("small").version
    serving.unload(draft, actor="tests")
    alone = estimate_for(deployment)
    guessing = {"speculation": "draft_model", "draft": draft}
    deployment = serving.configure(deployment, guessing, actor="tests")
    assert options_key(deployment) != plain
    both = estimate_for(deployment)
    assert both.draft_weights_bytes == GIB // 2
    guesses = 4 * 8 * 40 * 1000
    assert both.total_bytes == alone.total_bytes + GIB // 2 + guesses

    reconcile()
    agent.tick()
    [spec] = processes.started
    assert spec.model_path.endswith(f"/{deployment.version.pk}")
    assert spec.options.draft_path is not None
    assert spec.options.draft_path.endswith(f"/{draft.pk}")
    replica = deployment.replica_set.get()
    assert replica.reserved_bytes == both.total_bytes

    seen = {**MEASURED, "draft_weights": 520 * MIB, "activations": 30 * MIB}
    beat(replica, memory=seen, peak_running=8)
    agent.tick()
    row = LoadObservation.objects.get()
    assert row.options["draft"] == "acme/many@small"
    again = estimate_for(deployment)
    assert (again.total_bytes, again.calibrated) == (sum(seen.values()), True)
    assert again.draft_weights_bytes == 520 * MIB

    off = serving.configure(deployment, {"speculation": "", "draft": None}, actor="tests")
    assert estimate_for(off).draft_weights_bytes == 0
    assert not estimate_for(off).calibrated


def test_both_versions_files_are_suspected_after_a_load_that_failed(machine: Machine, make: Make) -> None:
    agent, processes = machine()
    deployment = make("a")
    draft = make("small").version
    serving.unload(draft, actor="tests")
    guessing = {"speculation": "draft_model", "draft": draft}
    deployment = serving.configure(deployment, guessing, actor="tests")
    held = [(one, Path("/files") / one.version) for one in deployment.loaded_versions]
    agent.files.held = lambda _key: held  # type: ignore[method-assign, assignment]
    looked: list[tuple[str, str]] = []
    agent.suspicion.look = lambda _key, version, folder: looked.append((version.version, str(folder)))  # type: ignore[method-assign]
    reconcile()
    agent.tick()

    replica = deployment.replica_set.get()
    processes.ends.append(ReplicaExit(str(replica.pk), replica.pid or 0, "a broken header", "", 1))
    agent.tick()
    assert looked == [("a", "/files/a"), ("small", "/files/small")]


def test_the_latest_loads_are_kept(machine: Machine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.calibration.KEPT", 2)
    agent, processes = machine()
    deployment = make("a")
    for number in range(3):
        reconcile()
        replica = deployment.replica_set.get(state=ReplicaState.PENDING)
        agent.tick()
        beat(replica, memory={**MEASURED, "weights": number})
        agent.tick()
        processes.ends.append(ReplicaExit(str(replica.pk), 0, "killed", "", -9))
        agent.tick()

    assert [row.measured["weights"] for row in LoadObservation.objects.all()] == [2, 1]


def test_options_that_were_edited_while_it_loaded_are_not_what_it_was_loaded_with(
    machine: Machine, make: Make
) -> None:
    agent, _ = machine()
    deployment = make("a")
    reconcile()
    agent.tick()
    serving.configure(deployment, {"max_streams": 3}, actor="tests")
    beat(deployment.replica_set.get(), memory=MEASURED)
    agent.tick()

    assert deployment.replica_set.get().state == ReplicaState.READY
    assert not LoadObservation.objects.exists()


def test_other_options_are_another_thing_and_other_versions_only_raise_it(
    machine: Machine, make: Make
) -> None:
    agent, _ = machine()
    deployment = make("a")
    reconcile()
    agent.tick()
    beat(deployment.replica_set.get(), memory=MEASURED)
    agent.tick()

    other = serving.configure(deployment, {"max_streams": 3}, actor="tests")
    found = estimate_for(other)
    assert (found.runtime_bytes, found.calibrated) == (MEASURED["runtime"], False)
    assert found.weights_bytes == GIB // 2

    calculated = 256 * MIB + 1536 * 1000
    assert estimate_for(make("b")).runtime_bytes == pytest.approx(MEASURED["runtime"], abs=1)
    assert calculated < MEASURED["runtime"]
    assert estimate_for(deployment, H100).runtime_bytes != MEASURED["runtime"], "of another kind of device"


def gpus(count: int) -> list[LocalDevice]:
    return [LocalDevice(f"gpu:{n}", H100, 80 * GIB, 72 * GIB, (9, 0), index=n) for n in range(count)]


def test_a_replica_over_several_gpus_is_reserved_on_each_and_sees_no_other(
    machine: Machine, make: Make
) -> None:
    agent, processes = machine(*gpus(3))
    wide = make("a", tensor_parallel=2)
    reconcile()

    replica = wide.replica_set.get()
    rooms = {room.name: room.reserved_bytes for room in device_rooms()}
    assert rooms == {
        "here/gpu:0": replica.reserved_bytes,
        "here/gpu:1": replica.reserved_bytes,
        "here/gpu:2": 0,
    }

    agent.tick()
    assert processes.started[0].gpus == [0, 1]
    # While it loads nobody else loads on the second of its GPUs, and somebody may on the third.
    alone = make("b")
    reconcile()
    assert str(alone.replica_set.get().device) == "here/gpu:2"
    agent.tick()
    assert processes.started[1].gpus == [2]
    third = make("c")
    Replica.objects.create(
        deployment=third,
        device=Device.objects.get(name="gpu:1"),
        reserved_bytes=1,
        state=ReplicaState.PENDING,
    )
    agent.tick()
    assert len(processes.started) == 2


def test_what_others_take_is_seen_and_not_given_away(
    machine: Machine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, _ = machine()
    monkeypatch.setattr(
        agents,
        "usage",
        lambda _d, _e: {"cpu:0": Usage(used_bytes=9 * GIB, used_by_others_bytes=7 * GIB, processes={7: GIB})},
    )
    agent.tick()

    device = Device.objects.get()
    assert (device.used_bytes, device.used_by_others_bytes) == (9 * GIB, 7 * GIB)
    assert device.processes == {"7": GIB}
    with pytest.raises(
        serving.InsufficientMemory, match=r"1\.0 GiB free of a budget of 8\.0 GiB, of which others"
    ):
        make("a")


def test_a_node_that_has_the_files_is_preferred(
    machine: Machine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.memory.store.is_local", lambda: False)
    monkeypatch.setattr(agents.store, "is_local", lambda: False)
    monkeypatch.setattr(agents.cache, "names", lambda: ["acme--many--b"])
    agent, _ = machine()
    agent.tick()
    agent.node.refresh_from_db()
    assert agent.node.files == ["acme--many--b"]

    deployment = make("b")
    ModelVersion.objects.filter(pk=deployment.version_id).update(path="acme--many/b")
    deployment.version.refresh_from_db()
    rooms = device_rooms()
    assert need_of(deployment, rooms).files in rooms[0].files
