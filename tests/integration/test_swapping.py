"""The controller's swapping over real rows and a real Redis; who is up and busy is written by hand."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from django.utils import timezone

from inference import actions as serving
from inference.engine.rqkeys import queue_key
from inference.models import Deployment, Device, Node, Replica, ReplicaState
from inference.notify import connection
from inference.plan import plan_of
from inference.protocol import ReplicaBeat, beat_key, queue_name
from inference.reconcile import MAX_TRIES, give_up, reconcile, start_one
from inference.snapshot import routing_table
from inference.status import statuses
from inference.swapping import Swapper
from inference.why import why_not_running
from mmserve.errors import InsufficientMemory, InvalidRequest
from registry import actions
from registry.models import ModelVersion, VersionState

GIB = 2**30
Make = Callable[..., Deployment]


@pytest.fixture
def device(db: None, redis_url: str) -> Device:
    """Room for one of them."""
    node = Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
    return Device.objects.create(
        node=node, name="cpu:0", kind="cpu", total_bytes=8 * GIB, budget_bytes=2 * GIB
    )


@pytest.fixture
def make(device: Device, settings: Any, tmp_path: Any) -> Make:
    """A ready version of about 1.4 GiB with its deployment, loaded through the action."""
    settings.DATA_DIR = tmp_path
    model = actions.register_model("acme/many", actor="tests")

    def made(name: str, **options: Any) -> Deployment:
        version = actions.register_version(model, name, f"file://{tmp_path}/{name}", actor="tests")
        facts = {"weight_bytes": GIB // 2, "parameters": GIB // 4, "vocabulary": 1000}
        ModelVersion.objects.filter(pk=version.pk).update(state=VersionState.READY, facts=facts)
        version.refresh_from_db()
        deployment = serving.ensure_deployment(version, actor="tests")
        options = {"min_residency_s": 0, **options}
        return serving.configure(deployment, options, actor="tests")

    return made


def load(deployment: Deployment) -> None:
    serving.load(deployment.version, actor="tests")


def up(deployment: Deployment, *, running: int = 0, age_s: float = 60.0) -> Replica:
    """Its replica as a node would report it."""
    row = deployment.replica_set.exclude(state__in=("stopped", "failed")).get()
    at = timezone.now() - datetime.timedelta(seconds=age_s)
    Replica.objects.filter(pk=row.pk).update(state=ReplicaState.READY, ready_at=at, load_seconds=2.0)
    past = {"wait_s": 0.0, "fetch_s": 0.0, "load_s": 2.0}
    Deployment.objects.filter(pk=deployment.pk).update(past_loads=[past])
    beat = ReplicaBeat(
        replica=str(row.pk), deployment=deployment.name, worker="w", state="ready", running=running
    )
    connection().set(beat_key(str(row.pk)), msgspec.json.encode(beat))
    return row


def stopped(row: Replica) -> None:
    Replica.objects.filter(pk=row.pk).update(state=ReplicaState.STOPPED)


def ask(deployment: Deployment, count: int = 1) -> None:
    for number in range(count):
        connection().rpush(queue_key(queue_name(deployment.name, "normal")), f"job-{number}")


def states() -> dict[str, tuple[bool, int]]:
    """Asleep, and replicas that stay, by deployment."""
    return {
        row.name[-1]: (
            row.asleep,
            row.replica_set.filter(state__in=("pending", "loading", "ready"), stop_requested=False).count(),
        )
        for row in Deployment.objects.all()
    }


def test_what_has_no_room_waits_until_the_idle_one_made_it(make: Make) -> None:
    a, b = make("a"), make("b")
    swapper = Swapper()
    load(a)
    reconcile(swapper)
    first = up(a)
    load(b)
    assert statuses([b.version])[b.version_id].stage == "waiting for memory"

    reconcile(swapper)
    assert states() == {"a": (True, 0), "b": (True, 0)}
    assert statuses([a.version])[a.version_id].status == "draining"
    reconcile(swapper)
    assert states()["b"] == (True, 0), "the memory is not back yet"

    stopped(first)
    reconcile(swapper)
    assert states() == {"a": (True, 0), "b": (False, 1)}
    assert statuses([a.version])[a.version_id].status == "asleep"


def asleep_beside(make: Make, **options: Any) -> tuple[Deployment, Deployment, Swapper, Replica]:
    """A up, B asleep beside it."""
    a, b = make("a", **options), make("b")
    load(a)
    swapper = Swapper()
    reconcile(swapper)
    replica = up(a)
    Deployment.objects.filter(pk=b.pk).update(replicas=1, asleep=True)
    return a, b, swapper, replica


def test_nobody_goes_while_nobody_asks(make: Make) -> None:
    _, _, swapper, _ = asleep_beside(make)
    reconcile(swapper)
    assert states() == {"a": (False, 1), "b": (True, 0)}


def test_a_job_in_the_queue_is_a_request_to_wake(make: Make) -> None:
    _, b, swapper, replica = asleep_beside(make)
    ask(b)
    reconcile(swapper)
    stopped(replica)
    reconcile(swapper)
    assert states() == {"a": (True, 0), "b": (False, 1)}


@pytest.mark.parametrize("options", [{"pinned": True}, {"on_demand": False}, {"priority_class": "high"}])
def test_who_is_never_put_to_sleep_for_another(make: Make, options: dict[str, Any]) -> None:
    _, b, swapper, _ = asleep_beside(make, **options)
    ask(b)
    for _ in range(3):
        reconcile(swapper)
    assert states() == {"a": (False, 1), "b": (True, 0)}


def test_a_busy_one_is_drained_only_after_the_longest_wait(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("inference.swapping.time.monotonic", lambda: now)
    a, b, swapper, _ = asleep_beside(make)
    up(a, running=1)
    ask(b)
    reconcile(swapper)
    now += 8
    reconcile(swapper)
    assert states()["a"] == (False, 1)
    now += 2
    reconcile(swapper)
    assert states()["a"] == (True, 0)


def test_room_for_the_next_one_is_made_when_the_load_before_it_is_nearly_over(
    make: Make, device: Device
) -> None:
    Device.objects.update(budget_bytes=3 * GIB)
    a, b, c = make("a"), make("b"), make("c")
    load(a)
    swapper = Swapper()
    reconcile(swapper)
    up(a)
    load(c)
    reconcile(swapper)
    assert states()["c"] == (False, 1)
    ask_to_sleep(b)
    ask(b)
    reconcile(swapper)
    assert states()["a"] == (False, 1), "it can answer while the other one loads"
    assert "here/cpu:0 loads another: room for this one is made when that is up." in why_not_running(
        b.version
    )

    Replica.objects.filter(deployment=c).update(created_at=timezone.now() - datetime.timedelta(minutes=1))
    reconcile(swapper)
    assert states()["a"] == (True, 0), "a load that hangs holds nobody up for longer than loads usually take"


def ask_to_sleep(deployment: Deployment) -> None:
    Deployment.objects.filter(pk=deployment.pk).update(replicas=1, asleep=True)


def test_of_two_that_wait_the_one_with_more_jobs_is_next(make: Make) -> None:
    a, b = make("a"), make("b")
    for one, jobs in ((a, 1), (b, 3)):
        ask_to_sleep(one)
        ask(one, jobs)
    reconcile(Swapper())
    assert states() == {"a": (True, 0), "b": (False, 1)}


def test_of_two_that_wait_as_long_the_one_with_the_shorter_load_is_next(make: Make) -> None:
    a, b = make("a"), make("b")
    for one, load_s in ((a, 12.0), (b, 3.0)):
        past = [{"wait_s": 0.0, "fetch_s": 0.0, "load_s": load_s}]
        Deployment.objects.filter(pk=one.pk).update(past_loads=past)
        ask_to_sleep(one)
        ask(one)
    reconcile(Swapper())
    assert states() == {"a": (True, 0), "b": (False, 1)}


def test_nobody_behind_takes_the_room_that_comes_for_the_one_before(make: Make) -> None:
    Device.objects.update(budget_bytes=3 * GIB)
    a, big, small = make("a"), make("b", kv_cache_bytes=3 * GIB // 2), make("c")
    load(a)
    swapper = Swapper()
    reconcile(swapper)
    first = up(a)
    for one, jobs in ((big, 3), (small, 1)):
        ask_to_sleep(one)
        ask(one, jobs)
    for _ in range(2):
        reconcile(swapper)
        assert states() == {"a": (True, 0), "b": (True, 0), "c": (True, 0)}, "there is room for the small one"
    stopped(first)
    reconcile(swapper)
    assert states() == {"a": (True, 0), "b": (False, 1), "c": (True, 0)}


def test_the_more_important_one_is_served_first(make: Make) -> None:
    a, b = make("a", priority_class="low"), make("b", priority_class="high")
    Deployment.objects.update(replicas=1, asleep=True)
    ask(a)
    swapper = Swapper()
    swapper.step()
    Deployment.objects.update(asleep=True)
    ask(b)
    reconcile(swapper)
    assert states() == {"a": (True, 0), "b": (False, 1)}


def test_an_idle_one_sleeps_after_its_time_and_wakes_when_asked(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("inference.swapping.time.monotonic", lambda: now)
    a = make("a", idle_ttl_s=30)
    load(a)
    swapper = Swapper()
    reconcile(swapper)
    replica = up(a)
    reconcile(swapper)
    now += 31
    reconcile(swapper)
    assert states()["a"] == (True, 0)
    stopped(replica)
    ask(a)
    reconcile(swapper)
    assert states()["a"] == (False, 1)


def test_a_controller_whose_count_is_old_places_nothing_twice(make: Make) -> None:
    a = make("a")
    load(a)
    a.refresh_from_db()
    assert start_one(a)
    assert not start_one(a), "another controller has placed it since this one counted"
    assert Replica.objects.count() == 1


def test_what_could_never_fit_is_refused_with_figures(make: Make) -> None:
    a, b = make("a", pinned=True), make("b")
    load(a)
    reconcile(Swapper())
    with pytest.raises(InsufficientMemory, match="cpu:0: needs 1.3 GiB, 0.7 GiB free of a budget of 2.0 GiB"):
        load(b)


def test_who_cannot_be_loaded_says_so_until_it_is_loaded_anew(make: Make, device: Device) -> None:
    a = make("a")
    load(a)
    for number in range(MAX_TRIES):
        Replica.objects.create(
            deployment=a,
            device=device,
            state=ReplicaState.FAILED,
            reserved_bytes=1,
            reason=f"out of memory {number}",
            ended_at=timezone.now(),
        )
    Replica.objects.filter(state=ReplicaState.PENDING).delete()
    reconcile(Swapper())
    a.refresh_from_db()
    assert a.failure == f"given up after {MAX_TRIES} tries: out of memory {MAX_TRIES - 1}"
    assert statuses([a.version])[a.version_id].status == "failed"
    give_up(a, None)

    load(a)
    a.refresh_from_db()
    assert a.failure == ""
    reconcile(Swapper())
    assert states()["a"] == (False, 1)


def test_several_gpus_of_one_node_are_freed_for_one_replica(
    device: Device, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device.objects.update(name="gpu:0", kind="H100", budget_bytes=6 * GIB)
    Device.objects.create(
        node=device.node, name="gpu:1", kind="H100", total_bytes=8 * GIB, budget_bytes=6 * GIB
    )
    a, b = make("a", kv_cache_bytes=3 * GIB), make("b", kv_cache_bytes=3 * GIB)
    wide = make("w", tensor_parallel=2, kv_cache_bytes=GIB)
    for one in (a, b):
        load(one)
    swapper = Swapper()
    reconcile(swapper)
    rows = [up(one) for one in (a, b)]
    assert {str(row.device) for row in rows} == {"here/gpu:0", "here/gpu:1"}

    load(wide)
    reconcile(swapper)
    assert states() == {"a": (True, 0), "b": (True, 0), "w": (True, 0)}
    stopped(rows[0])
    reconcile(swapper)
    assert states()["w"] == (True, 0), "one of two is not enough"
    stopped(rows[1])
    reconcile(swapper)

    replica = wide.replica_set.get()
    assert len({replica.device, *replica.more_devices.all()}) == 2
    # And the one that holds both of them goes for one that needs one.
    up(wide)
    ask(a)
    reconcile(swapper)
    assert states()["w"] == (True, 0)


def test_options_that_no_known_device_could_hold_are_refused_with_the_field(
    make: Make, device: Device
) -> None:
    a = make("a")
    with pytest.raises(InvalidRequest, match=r"needs 9\d\d\.\d GiB.*a budget of 2\.0 GiB") as refused:
        serving.configure(a, {"kv_cache_bytes": 900 * GIB, "max_wait_s": 7}, actor="tests")
    assert refused.value.param == "kv_cache_bytes"
    a.refresh_from_db()
    assert a.kv_cache_bytes < 900 * GIB

    Node.objects.update(last_seen=None)
    with pytest.raises(InvalidRequest):
        serving.configure(a, {"kv_cache_bytes": 900 * GIB}, actor="tests")
    device.delete()
    serving.configure(a, {"kv_cache_bytes": 900 * GIB}, actor="tests")


@pytest.mark.parametrize("asleep", [False, True])
def test_what_fits_nowhere_is_refused_with_figures_until_there_is_a_place_for_it(
    make: Make, device: Device, asleep: bool
) -> None:
    a = make("a")
    load(a)
    Deployment.objects.filter(pk=a.pk).update(kv_cache_bytes=900 * GIB, asleep=asleep)
    ask(a)
    swapper = Swapper()
    reconcile(swapper)
    reconcile(swapper)
    status = statuses([a.version])[a.version_id]
    assert (status.status, status.eta_s) == ("failed", None)
    assert status.reason is not None
    assert status.reason.startswith("it fits nowhere: here/cpu:0: needs 900.8 GiB, 2.0 GiB free")
    entry = routing_table().deployments[a.name]
    assert not entry.can_wake
    assert "needs 900.8 GiB" in entry.failure

    Device.objects.filter(pk=device.pk).update(budget_bytes=1000 * GIB)
    reconcile(swapper)
    assert statuses([a.version])[a.version_id].status == "loading"


def test_what_fits_in_the_place_of_one_that_is_being_unloaded_is_waited_for(make: Make) -> None:
    a, b = make("a", pinned=True), make("b")
    load(a)
    swapper = Swapper()
    reconcile(swapper)
    up(a)
    with pytest.raises(InsufficientMemory):
        load(b)
    serving.unload(a.version, actor="tests")
    reconcile(swapper)
    load(b)
    reconcile(swapper)
    assert statuses([b.version])[b.version_id].status == "loading"


def test_a_plan_without_options_is_of_the_deployment_as_it_is_edited(make: Make, device: Device) -> None:
    a = make("a")
    Deployment.objects.filter(pk=a.pk).update(kv_cache_bytes=900 * GIB)
    found = plan_of(a.version)
    assert found["parts"]["kv_cache"] == 900 * GIB
    assert not found["fits_when_empty"]
    assert plan_of(a.version, kv_cache_bytes=GIB)["parts"]["kv_cache"] == GIB
