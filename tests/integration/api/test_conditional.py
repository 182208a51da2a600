"""ETags, If-Match, Idempotency-Key, filters, search, order, history, drain."""

from __future__ import annotations

import base64
import threading
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from inference.deletion import finish_deletions
from inference.models import Deployment, Device, Node, Replica, ReplicaState
from registry import actions
from registry.models import IdempotentRequest, Model, ModelVersion
from tests.integration.api.conftest import client_with, make_ready

MODELS, VERSIONS = "/v1/registry/models", "/v1/registry/versions"


def problem(response: Any) -> tuple[int, str | None, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["code"]


def test_who_has_the_row_already_gets_304(manager: APIClient, ready: ModelVersion) -> None:
    first = manager.get(f"{VERSIONS}/{ready.pk}")

    again = manager.get(f"{VERSIONS}/{ready.pk}", HTTP_IF_NONE_MATCH=first["ETag"])
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", first["ETag"])

    actions.update_version(ready, actor="tests", tags=["new"])
    changed = manager.get(f"{VERSIONS}/{ready.pk}", HTTP_IF_NONE_MATCH=first["ETag"])
    assert (changed.status_code, changed.json()["tags"]) == (200, ["new"])


def test_a_change_of_what_somebody_changed_meanwhile_is_412(manager: APIClient, ready: ModelVersion) -> None:
    path = f"{MODELS}/{ready.model_id}"
    seen = manager.get(path)["ETag"]
    mine = manager.patch(path, {"team": "a"}, format="json", HTTP_IF_MATCH=seen)
    theirs = manager.patch(path, {"team": "b"}, format="json", HTTP_IF_MATCH=seen)

    assert mine.status_code == 200
    assert problem(theirs) == (412, "If-Match", "precondition_failed")
    assert manager.get(path).json()["team"] == "a"
    assert manager.delete(path, HTTP_IF_MATCH='"nonsense"').status_code == 412
    assert manager.patch(path, {"team": "c"}, format="json", HTTP_IF_MATCH=mine["ETag"]).status_code == 200
    assert manager.patch(path, {"team": "d"}, format="json", HTTP_IF_MATCH="*").status_code == 200


def test_a_repeated_post_is_answered_and_not_done_again(manager: APIClient, ready: ModelVersion) -> None:
    body = {"name": "once"}
    first = manager.post(MODELS, body, format="json", HTTP_IDEMPOTENCY_KEY="k1")
    again = manager.post(MODELS, body, format="json", HTTP_IDEMPOTENCY_KEY="k1")

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again["Idempotency-Replayed"] == "true"
    assert Model.objects.filter(name="once").count() == 1


def test_an_action_is_repeated_in_the_same_way(manager: APIClient, ready: ModelVersion) -> None:
    path = f"{VERSIONS}/{ready.pk}/duplicate"
    answers = [
        manager.post(path, {"version": "2"}, format="json", HTTP_IDEMPOTENCY_KEY="twin") for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["served_id"] == answers[1].json()["served_id"] == "acme/echo@2"


def test_a_key_with_another_request_is_422_and_a_running_one_409(manager: APIClient, db: None) -> None:
    manager.post(MODELS, {"name": "one"}, format="json", HTTP_IDEMPOTENCY_KEY="k")
    other = manager.post(MODELS, {"name": "two"}, format="json", HTTP_IDEMPOTENCY_KEY="k")
    assert problem(other) == (422, "Idempotency-Key", "idempotency_key_reused")

    IdempotentRequest.objects.update(status=None)
    running = manager.post(MODELS, {"name": "one"}, format="json", HTTP_IDEMPOTENCY_KEY="k")
    assert problem(running) == (409, "Idempotency-Key", "conflict")


def test_a_refused_request_leaves_its_key_free(manager: APIClient, db: None) -> None:
    assert manager.post(MODELS, {"name": "a b"}, format="json", HTTP_IDEMPOTENCY_KEY="k").status_code == 400
    assert manager.post(MODELS, {"name": "ab"}, format="json", HTTP_IDEMPOTENCY_KEY="k").status_code == 201
    bad = manager.post(MODELS, {"name": "abc"}, format="json", HTTP_IDEMPOTENCY_KEY="a b")
    assert problem(bad)[:2] == (400, "Idempotency-Key")


@pytest.mark.django_db(transaction=True)
def test_ten_posts_at_once_with_one_key_make_one_model(manage_key: Any) -> None:
    found: list[int] = []

    def post() -> None:
        try:
            client = client_with(manage_key[1])
            found.append(
                client.post(MODELS, {"name": "once"}, format="json", HTTP_IDEMPOTENCY_KEY="k").status_code
            )
        finally:
            connection.close()

    threads = [threading.Thread(target=post) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Model.objects.filter(name="once").count() == 1
    assert set(found) <= {201, 409}
    assert 201 in found


def test_lists_are_filtered_searched_and_ordered(manager: APIClient, ready: ModelVersion) -> None:
    actions.register_model("acme/zebra", actor="tests", team="search", tags=["eu", "tier=gold"])
    actions.register_model("acme/beta", actor="tests", tags=["eu-west"], description="For zebras")

    def names(query: str) -> list[str]:
        response = manager.get(f"{MODELS}?{query}")
        assert response.status_code == 200, response.json()
        return [row["name"] for row in response.json()["results"]]

    assert names("tag=eu") == ["acme/zebra"]
    assert names("team=search") == ["acme/zebra"]
    assert sorted(names("search=zebra")) == ["acme/beta", "acme/zebra"]
    assert names("ordering=name") == ["acme/beta", "acme/echo", "acme/zebra"]
    assert names("ordering=-name") == ["acme/zebra", "acme/echo", "acme/beta"]
    found = manager.get(f"{VERSIONS}?capability=completion&state=ready").json()["results"]
    assert [row["served_id"] for row in found] == ["acme/echo@1"]


@pytest.mark.parametrize(
    ("query", "param"),
    [("colour=red", "colour"), ("ordering=colour", "ordering"), ("limit=0", "limit"), ("tag=a%20b", "tag")],
)
def test_a_parameter_that_means_nothing_is_refused(
    manager: APIClient, db: None, query: str, param: str
) -> None:
    assert problem(manager.get(f"{MODELS}?{query}"))[:2] == (400, param)


def test_a_list_costs_the_same_queries_however_many_rows(
    manager: APIClient, ready: ModelVersion, django_assert_max_num_queries: Any
) -> None:
    for number in range(60):
        actions.duplicate_version(ready, f"{number}x", actor="tests")

    # key, versions with their model, files, revision
    with django_assert_max_num_queries(4):
        assert len(manager.get(f"{VERSIONS}?limit=50").json()["results"]) == 50


def test_pages_by_cursor_hold_every_row_once(manager: APIClient, db: None) -> None:
    for number in range(7):
        actions.register_model(f"m{number}", actor="tests")
    seen, path = [], f"{MODELS}?ordering=name&limit=3"
    while path:
        page = manager.get(path).json()
        seen += [row["name"] for row in page["results"]]
        path = page["next"]

    assert seen == [f"m{number}" for number in range(7)]


@pytest.mark.parametrize("order", ["version", "-version", "ready_at", "-ready_at", "created_at"])
def test_rows_that_are_alike_in_the_order_are_all_on_some_page(
    manager: APIClient, ready: ModelVersion, order: str
) -> None:
    for number in range(12):
        model = actions.register_model(f"alike{number}", actor="tests")
        actions.register_version(model, "1", ready.source_uri, actor="tests")
    actions.duplicate_version(ready, "2", actor="tests")
    seen, path = [], f"{VERSIONS}?ordering={order}&limit=2"
    while path:
        page = manager.get(path).json()
        seen += [row["id"] for row in page["results"]]
        path = page["next"]
        assert len(seen) <= 14

    assert sorted(seen) == sorted(ModelVersion.objects.values_list("pk", flat=True))


def test_more_rows_than_a_page_may_skip_are_alike(manager: APIClient, ready: ModelVersion) -> None:
    models = Model.objects.bulk_create(Model(name=f"alike{number}") for number in range(1700))
    ModelVersion.objects.bulk_create(
        ModelVersion(model=model, version="1", source_uri=ready.source_uri) for model in models
    )
    seen, path = [], f"{VERSIONS}?ordering=version&limit=500"
    while path and len(seen) <= 2000:
        page = manager.get(path).json()
        seen += [row["id"] for row in page["results"]]
        path = page["next"]

    assert len(seen) == len(set(seen)) == 1701


@pytest.mark.parametrize("position", ["p=garbage", "p=2026-99-99", "o=abc", "p=%00"])
@pytest.mark.parametrize("order", ["id", "created_at", "ready_at"])
def test_a_cursor_that_no_page_gave_is_a_wrong_value(
    manager: APIClient, ready: ModelVersion, position: str, order: str
) -> None:
    cursor = base64.b64encode(position.encode()).decode()

    assert problem(manager.get(VERSIONS, {"ordering": order, "cursor": cursor}))[:2] == (400, "cursor")
    assert problem(manager.get(f"{VERSIONS}?cursor=zzz"))[:2] == (400, "cursor")


def test_history_over_rest(manager: APIClient, ready: ModelVersion, source: str) -> None:
    actions.promote(ready, actor="ada", reason="first")
    then = timezone.now()
    actions.promote(make_ready(ready.model, "2", source), actor="bob")

    path = "/v1/models/acme/echo/history"
    now = manager.get(path).json()
    past = manager.get(f"{path}?at={quote(then.isoformat())}").json()
    unescaped = manager.get(f"{path}?at={then:%Y-%m-%dT%H:%M:%S}.999999 00:00")

    assert (now["aliases"], now["default"]) == ({"production": "2"}, "production")
    assert past["aliases"] == {"production": "1"}
    assert (past["data"][0]["kind"], past["data"][0]["actor"]) == ("alias.promoted", "ada")
    assert unescaped.status_code == 200
    page = manager.get(f"{path}?limit=1&before={now['data'][0]['id']}").json()
    assert [event["id"] for event in page["data"]] == [now["data"][1]["id"]]
    assert problem(manager.get(f"{path}?at=noon"))[:2] == (400, "at")
    assert problem(manager.get(f"{path}?limit=x"))[:2] == (400, "limit")
    assert problem(manager.get("/v1/models/nobody/history"))[0] == 404


def test_delete_with_drain_unloads_first_and_deletes_when_the_engine_is_gone(
    manager: APIClient, ready: ModelVersion
) -> None:
    node = Node.objects.create(name="here", last_seen=timezone.now())
    device = Device.objects.create(node=node, name="cpu:0", kind="cpu", total_bytes=1, budget_bytes=1)
    deployment = Deployment.objects.create(name="acme-echo-1", version=ready, replicas=1)
    replica = Replica.objects.create(
        deployment=deployment, device=device, state=ReplicaState.READY, reserved_bytes=1
    )
    actions.promote(ready, actor="tests")
    path = "/v1/models/acme/echo"

    refused = manager.delete(path)
    assert refused.status_code == 409
    assert "acme-echo-1" in refused.json()["error"]["message"]
    assert problem(manager.delete(f"{path}?drain=perhaps"))[:2] == (400, "drain")

    asked = manager.delete(f"{path}?drain=true&reason=old")
    assert (asked.status_code, asked.json()["deleted"]) == (202, False)
    deployment.refresh_from_db()
    assert deployment.replicas == 0
    again = manager.post(f"{path}/load", {}, format="json")
    assert "is being deleted" in again.json()["error"]["message"]
    finish_deletions()
    assert Model.objects.exists()

    Replica.objects.filter(pk=replica.pk).update(state=ReplicaState.STOPPED)
    finish_deletions()
    assert not Model.objects.exists()
    assert manager.get(path).status_code == 404


def test_delete_with_drain_of_what_nobody_serves_is_done_at_once(
    manager: APIClient, ready: ModelVersion
) -> None:
    answer = manager.delete("/v1/models/acme/echo@1?drain=true")

    assert (answer.status_code, answer.json()["deleted"]) == (200, True)
    assert not ModelVersion.objects.exists()
