"""Routes as rows: every change is an event and a revision, and the table follows."""

from __future__ import annotations

from typing import Any

import pytest

from inference.models import Deployment
from inference.snapshot import routing_table
from mmserve.errors import Conflict, InvalidRequest
from registry import actions as registry
from registry.models import Event, ModelVersion
from registry.revision import current
from routing.actions.routes import create_route, delete_route, portable, update_route
from routing.core.decision import RequestFacts, decide
from routing.core.live import DeploymentLoad
from routing.core.route import Cause
from routing.models.routes import Route, TrainedScorer
from tests.integration.api.conftest import make_ready, source

__all__ = ["source"]


@pytest.fixture
def versions(source: str, db: None) -> list[ModelVersion]:
    """Two models, one version each, both deployed."""
    found = []
    for name in ("acme/large", "acme/small"):
        version = make_ready(registry.register_model(name, actor="tests"), "1", source)
        registry.promote(version, actor="tests")
        Deployment.objects.create(
            name=name.replace("/", "-"), version=version, replicas=1, context_length=4096
        )
        found.append(version)
    return found


def lines(*targets: str) -> list[dict[str, Any]]:
    return [{"target": target} for target in targets]


def test_a_route_is_created_changed_and_deleted_with_an_event_and_a_revision_each(versions):
    before = current()
    route = create_route("fast", actor="ada", reason="try it", candidates=lines("acme/large"))
    update_route(route, actor="bob", policy="priority", candidates=lines("acme/small@1", "acme/large"))
    route.refresh_from_db()
    delete_route(route, actor="eve")

    events = list(Event.objects.filter(subject="fast").order_by("id"))
    assert [event.kind for event in events] == ["route.created", "route.updated", "route.deleted"]
    assert [event.revision - before for event in events] == [1, 2, 3]
    assert events[0].reason == "try it"
    changed = events[1].data["changed"]
    assert changed["policy"] == ["weighted", "priority"]
    assert [line["target"] for line in changed["candidates"][1]] == ["acme/small@1", "acme/large"]
    assert not Route.objects.exists()


def test_a_change_that_changes_nothing_makes_no_event(versions):
    route = create_route("fast", actor="ada", candidates=lines("acme/large"))
    update_route(route, actor="ada", candidates=portable(route)["candidates"], description="")
    assert Event.objects.filter(subject="fast").count() == 1


def test_the_loser_of_a_race_is_told_who_won(versions):
    route = create_route("fast", actor="ada", candidates=lines("acme/large"))
    seen = Route.objects.get(pk=route.pk)
    update_route(route, actor="bob", description="mine")
    with pytest.raises(Conflict, match="revision 2, not 1: bob changed it"):
        update_route(seen, actor="eve", description="mine")
    assert Route.objects.get(pk=route.pk).description == "mine"


@pytest.mark.parametrize(
    ("candidates", "param"),
    [
        (lines("acme/large", "nobody"), "candidates[1].target"),
        (lines("acme/large", "acme/large"), "candidates[1].target"),
        ([{"target": "acme/large", "weight": -1.0}], "candidates[0].weight"),
        ([{"target": "acme/large", "weight": float("inf")}], "candidates[0].weight"),
        (lines("no name"), "candidates[0].target"),
    ],
)
def test_a_wrong_candidate_is_named(versions, candidates, param):
    with pytest.raises(InvalidRequest) as error:
        create_route("fast", actor="ada", candidates=candidates)
    assert error.value.param == param
    assert not Route.objects.exists()


def test_names_of_models_and_routes_are_one_space(versions):
    with pytest.raises(Conflict, match="There is a model"):
        create_route("acme/large", actor="ada")
    create_route("fast", actor="ada", candidates=lines("acme/large"))
    with pytest.raises(Conflict, match="There is a route"):
        registry.register_model("fast", actor="ada")
    with pytest.raises(InvalidRequest):
        create_route("auto", actor="ada")


def test_a_version_that_a_route_names_is_not_archived_before_the_route_lets_it_go(versions, source):
    second = make_ready(versions[0].model, "2", source)
    route = create_route("fast", actor="ada", candidates=lines("acme/large@2"))
    with pytest.raises(Conflict, match="The route fast names acme/large@2"):
        registry.archive_version(second, actor="ada")
    update_route(route, actor="ada", candidates=lines("acme/small"))
    registry.archive_version(second, actor="ada")


def test_an_alias_that_a_route_names_is_not_deleted_before_the_route_lets_it_go(versions):
    model = versions[0].model
    route = create_route("fast", actor="ada", candidates=lines("acme/large"))
    with pytest.raises(Conflict, match="The route fast names acme/large"):
        registry.delete_alias(model.aliases.get(is_default=True), actor="ada")
    with pytest.raises(Conflict, match="The route fast names acme/large"):
        registry.delete_model(model, actor="ada")
    green = registry.promote(versions[0], actor="ada", alias="green")
    update_route(route, actor="ada", candidates=lines("acme/large@green"))
    with pytest.raises(Conflict, match="The route fast names acme/large@green"):
        registry.delete_alias(green, actor="ada")
    update_route(route, actor="ada", enabled=False)
    registry.delete_alias(green, actor="ada")
    assert routing_table().slate_of(routing_table().routes["fast"]).problems
    with pytest.raises(InvalidRequest, match="has no version or alias 'green'"):
        update_route(Route.objects.get(), actor="ada", enabled=True)


def test_a_version_that_is_archived_is_no_candidate(versions, source):
    second = make_ready(versions[0].model, "2", source)
    registry.archive_version(second, actor="ada")
    with pytest.raises(InvalidRequest, match="acme/large@2 is archived") as error:
        create_route("fast", actor="ada", candidates=lines("acme/small", "acme/large@2"))
    assert error.value.param == "candidates[1].target"


def test_the_table_has_the_route_and_decides_by_it(versions):
    registry.update_version(versions[0], actor="ada", price_input="30", price_output="60", tags=["region=eu"])
    create_route(
        "fast",
        actor="ada",
        policy="least_cost",
        candidates=lines("acme/large", "acme/small"),
        max_ttft_ms=5000,
    )
    table = routing_table()
    live = {name: DeploymentLoad(ready=1) for name in ("acme-large", "acme-small")}
    found = decide(table, live, RequestFacts(decision_id="d", model="fast", prompt_tokens=10, max_tokens=10))
    assert [link.served_id for link in found.chain] == ["acme/small@1", "acme/large@1"]
    assert found.route == "fast"
    auto = decide(table, live, RequestFacts(decision_id="d", model="auto", max_tokens=1))
    assert {link.served_id for link in auto.chain} == {"acme/small@1", "acme/large@1"}
    assert table.versions["acme/large@1"].words >= {"completion", "region=eu"}


def test_the_scorer_in_use_judges(versions):
    TrainedScorer.objects.create(number=1, weights={"acme/small@1": [3.0, 0, 0, 0, 0, 0, 0, 0]}, in_use=True)
    table = routing_table()
    assert table.scorer is not None
    assert table.slate("auto").judged is not None
    assert table.scorer.weights["acme/small@1"][0] == 3.0


def test_a_version_that_came_while_the_table_was_read_is_left_to_the_next_one(versions, monkeypatch):
    from inference import snapshot

    rows = list(snapshot._version_rows())
    monkeypatch.setattr(snapshot, "_version_rows", lambda: rows[:1])
    table = routing_table()
    assert list(table.versions) == ["acme/large@1"]
    assert list(table.deployments) == ["acme-large"]
    assert set(table.aliases.values()) == {"acme/large@1"}


@pytest.mark.parametrize(
    ("fields", "candidates", "words"),
    [
        ({}, [], "needs one at least"),
        ({"policy": "weighted"}, [{"target": "acme/large", "weight": 0}], "weight above 0"),
    ],
)
def test_a_route_that_could_choose_nobody_cannot_be_on(versions, fields, candidates, words):
    with pytest.raises(InvalidRequest, match=words) as error:
        create_route("fast", actor="ada", candidates=candidates, **fields)
    assert error.value.param == "candidates"
    route = create_route("fast", actor="ada", enabled=False, candidates=candidates, **fields)
    with pytest.raises(InvalidRequest, match=words):
        update_route(route, actor="ada", enabled=True)
    route = Route.objects.get()
    route = update_route(route, actor="ada", enabled=True, candidates=lines("acme/large"))
    with pytest.raises(InvalidRequest, match=words):
        update_route(route, actor="ada", candidates=candidates)


def test_a_models_fallbacks_are_in_the_table_as_its_aliases_have_them(versions):
    large = versions[0].model
    alias = registry.promote(versions[1], actor="tests", alias="cheap")
    registry.update_model(
        large, actor="tests", fallbacks=["acme/small@cheap"], first_token_ms=500, no_fallback_on=["overload"]
    )

    table = routing_table()

    entry = table.models["acme/large"]
    assert (entry.fallbacks, entry.first_token_s) == (("acme/small@cheap",), 0.5)
    assert entry.fallback_on == frozenset(Cause) - {Cause.OVERLOAD}
    assert table.models["acme/small"].fallbacks == ()
    live = {"acme-small": DeploymentLoad(ready=1, max_streams=8)}
    request = RequestFacts(decision_id="d", model="acme/large", max_tokens=10)
    assert [link.id for link in decide(table, live, request).chain] == ["acme-large", "acme-small"]

    registry.delete_alias(alias, actor="tests")
    after = decide(routing_table(), live, request)
    assert [link.id for link in after.chain] == ["acme-large"]
    assert "acme/small" in after.explained().problems[0]
