"""Why is it not running? Every answer that an operator may get, from real rows."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from inference import actions as serving
from inference.capacity.abilities import abilities
from inference.model_objects import version_object
from inference.models import Deployment, Device, Node, Replica, ReplicaState
from inference.notify import connection
from inference.protocol import ReplicaBeat, beat_key
from inference.reconcile import give_up, reconcile
from inference.why import MAX_REASONS, why_not_running
from registry import actions
from registry.models import ModelVersion, VersionState

GIB = 2**30
Make = Callable[..., Deployment]


@pytest.fixture
def device(db: None, redis_url: str) -> Device:
    """Room for one of them."""
    node = Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
    return Device.objects.create(
        node=node,
        name="cpu:0",
        kind="cpu",
        total_bytes=8 * GIB,
        budget_bytes=2 * GIB,
        abilities=abilities("cpu"),
    )


@pytest.fixture
def make(db: None, redis_url: str, settings: Any, tmp_path: Path) -> Make:
    """A ready version of about 1.3 GiB, wished for."""
    settings.DATA_DIR = tmp_path
    model = actions.register_model("acme/many", actor="tests")

    def made(name: str, **options: Any) -> Deployment:
        version = actions.register_version(model, name, f"file://{tmp_path}/{name}", actor="tests")
        facts = {"weight_bytes": GIB // 2, "parameters": GIB // 4, "vocabulary": 1000}
        ModelVersion.objects.filter(pk=version.pk).update(state=VersionState.READY, facts=facts)
        version.refresh_from_db()
        deployment = serving.ensure_deployment(version, actor="tests")
        serving.configure(deployment, {"min_residency_s": 0, **options}, actor="tests")
        Deployment.objects.filter(pk=deployment.pk).update(replicas=1)
        deployment.refresh_from_db()
        return deployment

    return made


def up(deployment: Deployment, *, age_s: float = 60.0, running: int = 0) -> Replica:
    row = deployment.replica_set.get()
    at = timezone.now() - datetime.timedelta(seconds=age_s)
    Replica.objects.filter(pk=row.pk).update(state=ReplicaState.READY, ready_at=at)
    beat = ReplicaBeat(
        replica=str(row.pk), deployment=deployment.name, worker="w", state="ready", running=running
    )
    connection().set(beat_key(str(row.pk)), msgspec.json.encode(beat))
    return row


def why(deployment: Deployment) -> list[str]:
    return why_not_running(deployment.version)


def test_what_runs_and_what_nobody_wishes_for_needs_no_reason(device: Device, make: Make) -> None:
    deployment = make("a")
    reconcile()
    up(deployment)
    assert why(deployment) == []
    Deployment.objects.update(replicas=0)
    assert why(deployment) == []
    assert why_not_running(ModelVersion(pk=12345)) == []


def test_where_there_is_room_it_is_the_controllers_turn(device: Device, make: Make) -> None:
    [reason] = why(make("a"))
    assert "room on here/cpu:0" in reason
    assert "manage.py controller" in reason


def test_without_a_node_it_says_what_to_start(make: Make) -> None:
    assert why(make("a")) == ["no node is running: start one with `manage.py node`"]


def test_a_node_that_is_away_is_named(device: Device, make: Make) -> None:
    Node.objects.update(last_seen=timezone.now() - datetime.timedelta(minutes=5))
    assert why(make("a")) == ["here/cpu:0: its node is not running"]


NEEDS = "here/cpu:0: needs 1.3 GiB, 0.7 GiB free of a budget of 2.0 GiB"


@pytest.mark.parametrize(
    ("options", "running", "age_s", "expected"),
    [
        ({}, 0, 60, "may be put to sleep for it"),
        ({"pinned": True}, 0, 60, "is not put to sleep for it: pinned"),
        ({"on_demand": False}, 0, 60, "is not put to sleep for it: always up"),
        ({"priority_class": "high"}, 0, 60, "is not put to sleep for it: of a higher class"),
        ({}, 3, 60, "is not put to sleep for it: busy, and drained only after 15 s of waiting"),
        ({"min_residency_s": 90}, 3, 59.6, "is not put to sleep for it: up for 60 s of at least 90 s"),
    ],
)
def test_what_waits_for_memory_says_who_has_it_and_whether_they_would_go(
    device: Device, make: Make, options: dict[str, Any], running: int, age_s: float, expected: str
) -> None:
    first = make("a", **options)
    reconcile()
    up(first, age_s=age_s, running=running)
    second = make("b")

    assert why(second) == [NEEDS, f"acme-many-a on here/cpu:0 {expected}."]


def test_what_could_never_be_there_speaks_of_nobody(device: Device, make: Make) -> None:
    first = make("a")
    reconcile()
    up(first)
    Device.objects.update(budget_bytes=GIB)
    assert why(make("b")) == ["here/cpu:0: needs 1.3 GiB, 0.0 GiB free of a budget of 1.0 GiB"]


def test_what_a_device_cannot_do_is_a_reason(device: Device, make: Make) -> None:
    deployment = make("a")
    Deployment.objects.filter(pk=deployment.pk).update(quantization="nvfp4_per_token", tensor_parallel=1)
    [reason] = why(deployment)
    assert "quantization nvfp4_per_token is not possible there" in reason


def test_one_that_sleeps_says_so_and_what_is_in_its_place(device: Device, make: Make) -> None:
    first = make("a")
    reconcile()
    up(first)
    second = make("b")
    Deployment.objects.filter(pk=second.pk).update(asleep=True)
    assert why(second)[:2] == ["It sleeps until somebody asks for it.", NEEDS]


def test_a_load_waits_for_its_turn_for_its_template_and_for_its_files(
    device: Device, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device.objects.update(budget_bytes=8 * GIB)
    first, second = make("a"), make("b")
    reconcile()
    mine, other = second.replica_set.get(), first.replica_set.get()

    assert why(second) == [f"{mine} waits for here to start it."]
    Node.objects.update(template_ready=False)
    assert why(second) == [f"{mine} waits for the engine template of here, which still imports."]
    Node.objects.update(template_ready=True)
    monkeypatch.setattr("inference.why.store.is_local", lambda: False)
    assert why(second) == [f"{mine} waits for its files, which are on their way to here."]
    Replica.objects.filter(pk=other.pk).update(state=ReplicaState.LOADING)
    assert why(first) == [f"{other} loads on here/cpu:0."]
    assert why(second) == [
        f"{mine} waits until {other} is loaded: loads on one device come one after the other."
    ]


def fail(deployment: Deployment, device: Device, times: int) -> Replica:
    for _ in range(times):
        row = Replica.objects.create(
            deployment=deployment,
            device=device,
            reserved_bytes=1,
            state=ReplicaState.FAILED,
            reason="exited with code 70: no such file",
            ended_at=timezone.now(),
        )
    return row


def test_a_backoff_says_until_when_and_what_happened(device: Device, make: Make) -> None:
    deployment = make("a")
    last = fail(deployment, device, 4)
    assert last.ended_at is not None
    until = last.ended_at + datetime.timedelta(seconds=8)
    assert why(deployment) == [
        f"Loads that failed in a row: 4; the next one is tried at {until:%H:%M:%S} UTC: "
        "exited with code 70: no such file"
    ]


def test_what_was_given_up_says_how_to_go_on(device: Device, make: Make) -> None:
    deployment = make("a")
    give_up(deployment, fail(deployment, device, 5))
    assert why(deployment) == [
        "given up after 5 tries: exited with code 70: no such file. A load starts anew."
    ]


def test_one_that_drains_is_waited_for(device: Device, make: Make) -> None:
    deployment = make("a")
    reconcile()
    row = up(deployment)
    Replica.objects.filter(pk=row.pk).update(stop_requested=True, state=ReplicaState.DRAINING)
    assert why(deployment)[0] == f"{row} on here/cpu:0 still drains."


def test_a_fleet_of_reasons_is_cut(device: Device, make: Make) -> None:
    for number in range(MAX_REASONS + 5):
        Device.objects.create(
            node=device.node, name=f"cpu:{number + 1}", kind="cpu", total_bytes=1, budget_bytes=1
        )
    Device.objects.filter(name="cpu:0").update(budget_bytes=1)
    found = why(make("a"))
    assert len(found) == MAX_REASONS + 1
    assert found[-1] == "And 6 more reasons like these."


def test_the_models_object_has_them(device: Device, make: Make) -> None:
    first = make("a", pinned=True)
    reconcile()
    up(first)
    second = make("b")
    found = version_object(second.version, "acme/many@b", why=True)
    assert found["why"] == [NEEDS, "acme-many-a on here/cpu:0 is not put to sleep for it: pinned."]
    assert version_object(first.version, "acme/many@a", why=True)["why"] == []
