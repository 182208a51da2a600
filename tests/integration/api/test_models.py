"""``/v1/models``: OpenAI's shape, the status, load, unload, delete."""

from __future__ import annotations

import datetime
import re
import threading
from typing import Any

import msgspec
import pytest
import redis
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from inference.models import Deployment, Device, Node, Replica, ReplicaState
from inference.notify import connection
from inference.protocol import ASKED_KEY, NOT_HERE, ReplicaBeat, beat_key, checks_key
from inference.reconcile import give_up
from registry import actions
from registry.models import Event, Model, ModelVersion, VersionState
from routing.actions.routes import create_route
from tests.integration.api.conftest import make_ready


@pytest.fixture
def device(db: None) -> Device:
    node = Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
    return Device.objects.create(node=node, name="cpu:0", kind="cpu", total_bytes=2**36, budget_bytes=2**35)


@pytest.fixture
def deployment(ready: ModelVersion) -> Deployment:
    return Deployment.objects.create(name="acme-echo-1", version=ready, replicas=1)


def replica(deployment: Deployment, device: Device, state: str, **fields: Any) -> Replica:
    return Replica.objects.create(
        deployment=deployment, device=device, state=state, reserved_bytes=1, **fields
    )


def status_of(client: APIClient) -> dict[str, Any]:
    found = client.get("/v1/models/acme/echo").json()
    return {name: found[name] for name in ("status", "reason", "stage", "eta_s")}


def test_the_list_has_openais_shape_and_ours(reader: APIClient, ready: ModelVersion) -> None:
    actions.promote(ready, actor="tests")

    found = reader.get("/v1/models").json()

    assert found["object"] == "list"
    one, auto = found["data"]
    assert (auto["id"], auto["policy"], auto["capabilities"]) == ("auto", "balanced", ["completion"])
    assert (one["id"], one["object"], one["owned_by"]) == ("acme/echo", "model", "mmserve")
    assert isinstance(one["created"], int)
    assert one["status"] == "unloaded"
    assert one["versions"] == [{"id": "acme/echo@1", "status": "unloaded"}]
    assert one["aliases"] == {"production": "1"}
    assert one["capabilities"] == ["completion"]
    assert one["context_length"] == 64


def test_the_list_costs_the_same_queries_however_many_models(
    reader: APIClient, ready: ModelVersion, source: str, device: Device, django_assert_max_num_queries: Any
) -> None:
    for number in range(12):
        model = actions.register_model(f"many-{number}", actor="tests")
        for name in ("1", "2"):
            version = make_ready(model, name, source)
            actions.promote(version, actor="tests")
            made = Deployment.objects.create(name=f"d-{version.pk}", version=version, replicas=1)
            replica(made, device, ReplicaState.READY)

    create_route("best", actor="tests", candidates=[{"target": "many-1"}, {"target": "many-2@1"}])
    # key, last event, models, versions, aliases, routes, their lines, what is served, deployments, replicas, revision
    with django_assert_max_num_queries(11):
        found = reader.get("/v1/models").json()["data"]

    assert len(found) == 15
    auto, best = found[-2:]
    assert (auto["id"], auto["status"]) == ("auto", "ready")
    assert (best["id"], best["status"], best["candidates"]) == ("best", "ready", ["many-1", "many-2@1"])
    assert reader.get("/v1/models/best").json() == best
    assert reader.get("/v1/models/auto").json() == auto


@pytest.mark.parametrize("path", ["acme/echo", "acme%2Fecho"])
def test_an_id_may_hold_a_slash(reader: APIClient, ready: ModelVersion, path: str) -> None:
    assert reader.get(f"/v1/models/{path}").json()["id"] == "acme/echo"


@pytest.mark.parametrize("label", ["1", "production"])
def test_a_version_and_an_alias_have_an_object_of_their_own(
    reader: APIClient, ready: ModelVersion, label: str
) -> None:
    actions.promote(ready, actor="tests")

    found = reader.get(f"/v1/models/acme/echo@{label}").json()

    assert (found["id"], found["version"]) == (f"acme/echo@{label}", "1")


@pytest.mark.parametrize(
    "model_id", ["acme/ecko", "acme/echo@9", "%00", "a@@b", "x" * 3000, "%F0%9F", "@", "a@"]
)
def test_an_unknown_id_is_404_in_the_envelope(reader: APIClient, ready: ModelVersion, model_id: str) -> None:
    response = reader.get(f"/v1/models/{model_id}")

    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == "model_not_found"


def test_an_unknown_name_gets_near_names(reader: APIClient, ready: ModelVersion) -> None:
    message = reader.get("/v1/models/acme/ecko").json()["error"]["message"]

    assert message == "There is no model 'acme/ecko'. Did you mean acme/echo?"


def test_the_status_follows_the_files(reader: APIClient, ready: ModelVersion) -> None:
    rows = ModelVersion.objects.filter(pk=ready.pk)
    rows.update(state=VersionState.FETCHING, progress={"stage": "convert", "eta_s": 4.5})
    assert status_of(reader) == {"status": "fetching", "reason": None, "stage": "convert", "eta_s": 4.5}

    rows.update(state=VersionState.FAILED, state_reason="no space")
    assert status_of(reader) == {"status": "failed", "reason": "no space", "stage": None, "eta_s": None}

    rows.update(state=VersionState.REGISTERED)
    assert status_of(reader)["reason"] == "Its files were not fetched yet."


def test_the_status_follows_the_replicas(reader: APIClient, deployment: Deployment, device: Device) -> None:
    assert status_of(reader) == {
        "status": "loading",
        "reason": None,
        "stage": "waiting for a node",
        "eta_s": None,
    }
    row = replica(deployment, device, ReplicaState.PENDING)
    assert status_of(reader)["stage"] == "pending"

    Replica.objects.update(state=ReplicaState.READY, load_seconds=40.0)
    assert status_of(reader)["status"] == "ready"

    Replica.objects.update(stop_requested=True)
    assert status_of(reader)["status"] == "draining"

    Replica.objects.update(state=ReplicaState.STOPPED)
    Deployment.objects.update(replicas=0)
    assert status_of(reader)["status"] == "unloaded"

    Replica.objects.filter(pk=row.pk).update(state=ReplicaState.FAILED, reason="killed by signal 9")
    assert status_of(reader) == {
        "status": "failed",
        "reason": "killed by signal 9",
        "stage": None,
        "eta_s": None,
    }


def test_a_ready_model_tells_the_form_of_its_slowest_engine(
    reader: APIClient, deployment: Deployment, device: Device, redis_url: str
) -> None:
    rows = [replica(deployment, device, ReplicaState.READY) for _ in range(2)]

    def beat(row: Replica, form: str) -> None:
        told = ReplicaBeat(
            replica=str(row.pk), deployment=deployment.name, worker="w", state="ready", form=form
        )
        connection().set(beat_key(str(row.pk)), msgspec.json.encode(told))

    assert reader.get("/v1/models/acme/echo").json()["form"] is None
    beat(rows[0], "compiled")
    assert reader.get("/v1/models/acme/echo").json()["form"] == "compiled"
    beat(rows[1], "compiling")
    assert reader.get("/v1/models/acme/echo").json()["form"] == "compiling"
    beat(rows[1], "")  # an engine that is left to vLLM
    assert reader.get("/v1/models/acme/echo").json()["form"] == "compiled"


def test_the_time_left_is_the_usual_time_of_a_load_less_what_has_passed(
    reader: APIClient, deployment: Deployment, device: Device
) -> None:
    past = {"wait_s": 0.0, "fetch_s": 50.0, "load_s": 1000.0}
    Deployment.objects.update(past_loads=[past])
    row = replica(deployment, device, ReplicaState.PENDING)
    assert 1040 < status_of(reader)["eta_s"] <= 1050

    begun = timezone.now() - datetime.timedelta(seconds=30)
    Replica.objects.filter(pk=row.pk).update(state=ReplicaState.LOADING, started_at=begun)
    found = status_of(reader)
    assert found["status"] == "loading"
    assert 960 < found["eta_s"] <= 970


def test_bytes_are_told_of_a_stage_that_counts_them_and_its_speed_tells_the_rest(
    reader: APIClient, deployment: Deployment, device: Device, redis_url: str
) -> None:
    Deployment.objects.update(past_loads=[{"wait_s": 0.0, "fetch_s": 0.0, "load_s": 2.0}])
    row = replica(deployment, device, ReplicaState.PENDING)
    beat = ReplicaBeat(
        replica=str(row.pk),
        deployment=deployment.name,
        worker="",
        state="loading",
        stage="fetching files",
        done_bytes=250,
        total_bytes=1000,
        left_s=6.0,
    )
    connection().set(beat_key(str(row.pk)), msgspec.json.encode(beat))

    found = reader.get("/v1/models/acme/echo").json()

    assert (found["stage"], found["done_bytes"], found["total_bytes"]) == ("fetching files", 250, 1000)
    assert found["eta_s"] == 8.0


def test_one_that_sleeps_tells_what_it_would_take_and_once_it_is_asked_for_what_remains(
    reader: APIClient, deployment: Deployment, redis_url: str
) -> None:
    past = {"wait_s": 4.0, "fetch_s": 0.0, "load_s": 10.0}
    Deployment.objects.update(past_loads=[past], asleep=True)
    found = status_of(reader)
    assert (found["status"], found["eta_s"]) == ("asleep", 14.0)

    asked = {deployment.name: timezone.now().timestamp() - 3}
    connection().set(ASKED_KEY, msgspec.json.encode(asked))
    found = status_of(reader)
    assert (found["status"], found["stage"]) == ("loading", "waiting for memory")
    assert 10 < found["eta_s"] <= 11


def test_load_and_unload_answer_202_with_the_status(
    manager: APIClient, ready: ModelVersion, device: Device
) -> None:
    response = manager.post("/v1/models/acme/echo/load", {"replicas": 1, "reason": "peak"}, format="json")
    assert (response.status_code, response.json()["status"]) == (202, "loading")
    event = Event.objects.filter(kind="deployment.load").get()
    assert (event.actor, event.reason) == ("key:ops", "peak")

    response = manager.post("/v1/models/acme%2Fecho/unload")
    assert (response.status_code, response.json()["status"]) == (202, "unloaded")


def test_a_load_that_cannot_fit_is_409_with_the_figures(
    manager: APIClient, ready: ModelVersion, device: Device
) -> None:
    Device.objects.update(budget_bytes=2**20)

    response = manager.post("/v1/models/acme/echo/load")

    assert response.status_code == 409
    assert response.json()["error"]["code"] == "insufficient_memory"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": "many"}, "replicas"),
        ({"replicas": "1"}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"replicas": 10**30}, "replicas"),
        ({"replica": 1}, "replica"),
        ({"reason": "x" * 2001}, "reason"),
        ({"reason": "\0"}, "reason"),
    ],
)
def test_a_wrong_body_names_its_field(
    manager: APIClient, ready: ModelVersion, body: dict[str, Any], param: str
) -> None:
    response = manager.post("/v1/models/acme/echo/load", body, format="json")

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_version_whose_files_are_not_here_is_not_loaded(
    manager: APIClient, ready: ModelVersion, device: Device
) -> None:
    ModelVersion.objects.update(state=VersionState.FAILED, state_reason="no space")

    response = manager.post("/v1/models/acme/echo/load")

    assert response.status_code == 409
    assert "no space" in response.json()["error"]["message"]


def test_delete_has_openais_shape(manager: APIClient, ready: ModelVersion) -> None:
    response = manager.delete("/v1/models/acme%2Fecho?reason=over")

    assert response.json() == {"id": "acme/echo", "object": "model", "deleted": True}
    assert not Model.objects.exists()
    event = Event.objects.filter(kind="model.deleted").get()
    assert event.reason == "over"


def test_delete_takes_one_version_or_an_alias(manager: APIClient, ready: ModelVersion, source: str) -> None:
    make_ready(ready.model, "2", source)
    actions.promote(ready, actor="tests")

    assert manager.delete("/v1/models/acme/echo@2").json()["deleted"] is True
    assert manager.delete("/v1/models/acme/echo@1").status_code == 409
    assert manager.delete("/v1/models/acme/echo@production").json()["deleted"] is True
    assert manager.delete("/v1/models/acme/echo@1").json()["deleted"] is True
    assert Model.objects.exists()


def test_what_is_served_is_not_deleted_and_the_refusal_says_by_what(
    manager: APIClient, deployment: Deployment, device: Device
) -> None:
    replica(deployment, device, ReplicaState.READY)

    response = manager.delete("/v1/models/acme/echo")

    assert response.status_code == 409
    assert "deployment acme-echo-1" in response.json()["error"]["message"]
    assert Model.objects.exists()


def test_a_deployment_that_sleeps_goes_with_its_model(manager: APIClient, deployment: Deployment) -> None:
    Deployment.objects.update(replicas=0)

    assert manager.delete("/v1/models/acme/echo").status_code == 200
    assert not Deployment.objects.exists()


@pytest.mark.parametrize(
    ("answer", "why"),
    [(None, "no node is up"), (NOT_HERE, "its files are not on node here"), (b"", None)],
)
def test_the_event_says_whether_an_engine_checked_the_options(
    manager: APIClient, deployment: Deployment, redis_url: str, answer: bytes | None, why: str | None
) -> None:
    ModelVersion.objects.update(facts={"vocabulary": 1000})
    Node.objects.all().delete()
    path, client = f"/v1/registry/deployments/{deployment.pk}", redis.Redis.from_url(redis_url)

    def answers() -> None:
        asked = client.blpop([checks_key("here")], timeout=20)
        assert asked is not None
        client.rpush(msgspec.json.decode(asked[1])["reply_to"], answer)  # type: ignore[arg-type]

    node = threading.Thread(target=answers)
    if answer is not None:
        Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
        node.start()
    assert manager.patch(path, {"max_streams": 8}, format="json").status_code == 200
    if answer is not None:
        node.join(20)
    assert Event.objects.get(kind="deployment.configured").data.get("unchecked") == why


def test_a_deployments_options_change_by_patch(manager: APIClient, deployment: Deployment) -> None:
    path = f"/v1/registry/deployments/{deployment.pk}"

    response = manager.patch(path, {"max_streams": 8, "reason": "small"}, format="json")
    assert (response.status_code, response.json()["max_streams"]) == (200, 8)
    assert Event.objects.filter(kind="deployment.configured", reason="small").exists()

    for body, param in (({"max_streams": 0}, "max_streams"), ({"context_length": 65}, "context_length")):
        response = manager.patch(path, body, format="json")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_why_a_deployment_was_given_up_is_told_with_the_last_lines_of_its_log(
    manager: APIClient, deployment: Deployment, device: Device, client: Client, ada: User
) -> None:
    log = "loading weights\nRuntimeError: out of memory"
    ended = {"ended_at": timezone.now(), "reason": "exited with code 70: RuntimeError: out of memory"}
    replica(deployment, device, ReplicaState.FAILED, log_tail=log, **ended)
    give_up(deployment, deployment.replica_set.first())

    found = manager.get(f"/v1/registry/deployments/{deployment.pk}").json()
    assert found["failure"].endswith("RuntimeError: out of memory")
    assert found["log_tail"] == log
    assert status_of(manager)["reason"] == found["failure"]
    client.force_login(ada)
    page = client.get(f"/admin/inference/deployment/{deployment.pk}/change/").content.decode()
    assert "given up after 5 tries" in page
    assert "loading weights" in page

    # A new set of tries: what was is no news any more.
    Replica.objects.update(superseded=True)
    assert manager.get(f"/v1/registry/deployments/{deployment.pk}").json()["log_tail"] is None


def test_created_is_the_models_own_time(reader: APIClient, ready: ModelVersion) -> None:
    created = reader.get("/v1/models/acme/echo").json()["created"]

    assert created == int(Model.objects.get().created_at.replace(tzinfo=datetime.UTC).timestamp())


def test_a_plan_says_by_part_what_it_takes_and_on_which_devices_it_fits(
    manager: APIClient, ready: ModelVersion, device: Device
) -> None:
    facts = {"layers": 2, "kv_heads": 2, "head_size": 64, "weight_bytes": 10**9, "parameters": 5 * 10**8}
    ModelVersion.objects.filter(pk=ready.pk).update(facts={**facts, "context_length": 1000})
    Device.objects.create(
        node=device.node, name="gpu:0", kind="NVIDIA L4", total_bytes=2**34, budget_bytes=10**9
    )

    found = manager.get("/v1/models/acme/echo@1/plan?streams=3").json()

    assert found["total_bytes"] == sum(found["parts"].values())
    assert found["parts"]["weights"] == 10**9
    assert (found["fits"], found["device"], found["calibrated"]) == (True, "here/cpu:0", False)
    on = {one["device"]: one for one in found["devices"]}
    assert (on["here/cpu:0"]["fits"], on["here/cpu:0"]["reason"]) == (True, None)
    # A thousand tokens of 1,024 bytes each, in all that is left beside the rest.
    rest = found["total_bytes"] - 3 * 1_024_000
    assert on["here/cpu:0"]["streams"] == (2**35 - rest) // 1_024_000
    assert (on["here/gpu:0"]["fits"], on["here/gpu:0"]["streams"]) == (False, 0)
    assert "of a budget of 0.9 GiB" in on["here/gpu:0"]["reason"]


def test_why_it_is_not_running_stands_beside_the_status_for_those_who_may_manage(
    manager: APIClient, reader: APIClient, deployment: Deployment, device: Device
) -> None:
    Device.objects.update(budget_bytes=2**20)
    found = manager.get("/v1/models/acme/echo").json()
    assert found["status"] == "loading"
    [reason] = found["why"]
    assert reason.startswith("here/cpu:0: needs ")
    assert manager.get("/v1/models/acme/echo@1").json()["why"] == [reason]
    one, _auto = manager.get("/v1/models").json()["data"]
    assert "why" not in one
    for path in ("/v1/models/acme/echo", "/v1/models/acme/echo@1"):
        answer = reader.get(path)
        assert answer.status_code == 200
        assert "why" not in answer.json()
        assert "here/" not in answer.content.decode(), "no node's name"


def test_the_cache_is_typed_with_its_unit_and_a_wrong_one_comes_back(
    deployment: Deployment, device: Device, client: Client, ada: User
) -> None:
    client.force_login(ada)
    path = f"/admin/inference/deployment/{deployment.pk}/change/"
    form = client.get(path).context["adminform"].form
    values = {name: form[name].value() for name in form.fields}
    assert values["kv_cache_bytes"] == "512 MiB"
    body = {
        **{name: value for name, value in values.items() if value not in (None, False)},
        **{
            f"{name}-{count}_FORMS": "0"
            for name in ("schedules", "replica_set")
            for count in ("TOTAL", "INITIAL")
        },
        "warmup_prompts": "[]",
    }

    assert client.post(path, {**body, "kv_cache_bytes": "1.5 GiB"}).status_code == 302
    assert Deployment.objects.get().kv_cache_bytes == 3 * 2**29
    impossible = client.post(path, {**body, "kv_cache_bytes": "900 GiB"})
    assert "needs 90" in str(impossible.context["adminform"].form.errors["kv_cache_bytes"])
    assert re.search(
        r'href="#id_kv_cache_bytes">[^<]*</a>: [^<]*it fits nowhere', impossible.content.decode()
    )
    assert Deployment.objects.get().kv_cache_bytes == 3 * 2**29
    wrong = client.post(path, {**body, "kv_cache_bytes": "a lot"})
    assert "with its unit" in str(wrong.context["adminform"].form.errors["kv_cache_bytes"])
    assert 'value="a lot"' in wrong.content.decode()


def test_a_cache_that_no_device_could_hold_is_refused_over_rest(
    manager: APIClient, deployment: Deployment, device: Device
) -> None:
    path = f"/v1/registry/deployments/{deployment.pk}"
    answer = manager.patch(path, {"kv_cache_bytes": 900 * 2**30}, format="json")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "kv_cache_bytes"
    assert "here/cpu:0: needs 90" in answer.json()["error"]["message"]
    # What fits nowhere already may be made smaller in steps.
    Deployment.objects.update(kv_cache_bytes=900 * 2**30)
    assert manager.patch(path, {"kv_cache_bytes": 800 * 2**30}, format="json").status_code == 200
