"""Routes in the registry's document: out, in, the difference, and what is wrong, through the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command

from registry import actions as registry_actions
from registry.models import Event, Model
from routing.actions.routes import create_route, delete_route, find_route, portable, update_route
from routing.models import Route
from tests.integration.registry.conftest import checkpoint, data_dir, model, version_of

__all__ = ["checkpoint", "data_dir", "model", "version_of"]

Apply = Callable[..., list[tuple[str, str, dict[str, Any], str | None]]]


@pytest.fixture(autouse=True)
def _no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_actions.versions, "_enqueue", lambda *args: None)


@pytest.fixture
def exported(model: Model, version_of: Callable[..., Any], capsys: Any) -> dict[str, Any]:
    """A model with an alias and two versions, and two routes over it; as it was written."""
    registry_actions.promote(version_of("1"), actor="tests")
    version_of("2")
    create_route(
        "smart", actor="tests", policy="balanced", description="für alle", weight_quality=1.0, require=["json"],
        max_cost_usd="0.010", max_ttft_ms=900, min_context=64, first_token_ms=2000, hedge_percent=2.5,
        no_fallback_on=["budget"],
        candidates=[
            {"target": "acme/echo@2", "weight": 3.0, "note": "new"}, {"target": "acme/echo@production"},
        ],
    )  # fmt: skip
    create_route("plain", actor="tests", enabled=False, candidates=[{"target": "acme/echo"}])
    call_command("registry_export")
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture
def apply(tmp_path: Path, capsys: Any) -> Apply:
    """``registry_apply`` of this document."""

    def applied(document: dict[str, Any], *options: str) -> list[tuple[str, str, dict[str, Any], str | None]]:
        file = tmp_path / "registry.yaml"
        file.write_text(yaml.safe_dump(document, allow_unicode=True))
        call_command("registry_apply", str(file), "--json", *options)
        rows = json.loads(capsys.readouterr().out)
        return [(row["what"], row["subject"], row["fields"], row["waits"]) for row in rows]

    return applied


def test_what_is_exported_has_the_routes_and_says_nothing_new(exported: dict[str, Any], apply: Apply) -> None:
    assert [route["name"] for route in exported["routes"]] == ["plain", "smart"]
    smart = exported["routes"][1]
    assert (smart["policy"], smart["max_cost_usd"], smart["no_fallback_on"]) == (
        "balanced",
        "0.01",
        ["budget"],
    )
    assert smart["candidates"][0] == {"target": "acme/echo@2", "weight": 3.0, "note": "new"}
    assert apply(exported, "--dry-run", "--prune") == []


def test_routes_come_back_as_they_were(exported: dict[str, Any], apply: Apply) -> None:
    before = {route.name: portable(route) for route in Route.objects.all()}
    for route in Route.objects.all():
        delete_route(route, actor="tests")

    done = apply(exported, "--reason", "deploy")

    assert [(what, subject) for what, subject, _, _ in done] == [
        ("create route", "plain"),
        ("create route", "smart"),
    ]
    assert {route.name: portable(route) for route in Route.objects.all()} == before
    assert Event.objects.filter(kind="route.created", reason="deploy").count() == 2
    assert apply(exported) == []


def test_a_dry_run_shows_what_would_change_of_a_route_and_changes_nothing(
    exported: dict[str, Any], apply: Apply
) -> None:
    smart = exported["routes"][1]
    smart["policy"] = "least_cost"
    smart["candidates"] = [{"target": "acme/echo"}]
    del smart["max_ttft_ms"]
    shown = apply(exported, "--dry-run")
    [(what, subject, fields, waits)] = shown
    assert (what, subject, waits) == ("change route", "smart", None)
    assert fields["policy"] == ["balanced", "least_cost"]
    assert fields["max_ttft_ms"] == [900, None]
    assert [[line["target"] for line in lines] for lines in fields["candidates"]] == [
        ["acme/echo@2", "acme/echo@production"],
        ["acme/echo"],
    ]
    assert set(fields) == {"policy", "max_ttft_ms", "candidates"}
    assert find_route("smart").revision == 1

    assert apply(exported) == shown
    assert portable(find_route("smart"))["candidates"][0]["target"] == "acme/echo"
    assert Event.objects.filter(kind="route.updated").count() == 1


def test_a_route_over_what_the_document_brings_is_made_with_it_and_waits_for_an_alias(
    exported: dict[str, Any], apply: Apply
) -> None:
    for name in ("smart", "plain"):
        delete_route(find_route(name), actor="tests")
    registry_actions.delete_model(Model.objects.get(), actor="tests")

    done = apply(exported)

    waits = {subject: why for _, subject, _, why in done}
    assert waits["plain"] is None
    assert waits["smart"] == "acme/echo@1 is not ready yet"
    assert list(Route.objects.values_list("name", flat=True)) == ["plain"]


def test_a_version_may_be_archived_in_the_step_that_takes_it_off_its_route(
    exported: dict[str, Any], apply: Apply
) -> None:
    exported["models"][0]["versions"][1]["archived"] = True
    exported["routes"][1]["candidates"] = [{"target": "acme/echo@1"}]
    assert [what for what, *_ in apply(exported)] == ["change route", "archive version"]


def test_routes_that_a_document_does_not_name_stay_unless_it_is_pruned(
    exported: dict[str, Any], apply: Apply
) -> None:
    named = {**exported, "routes": exported["routes"][:1]}
    assert apply(named) == []
    silent = {name: value for name, value in exported.items() if name != "routes"}
    assert apply(silent, "--prune") == []
    assert [row[:2] for row in apply(named, "--prune")] == [("delete route", "smart")]
    assert list(Route.objects.values_list("name", flat=True)) == ["plain"]


def test_a_document_of_chosen_models_has_no_routes(exported: dict[str, Any], capsys: Any) -> None:
    call_command("registry_export", "acme/echo")
    assert "routes" not in yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ({"policy": "random"}, "routes[0].policy"),
        ({"weight_cost": -1}, "routes[0].weight_cost"),
        ({"weight_cost": float("nan")}, "routes[0].weight_cost"),
        ({"max_cost_usd": 0.01}, "put it in quotes"),
        ({"max_cost_usd": "a lot"}, "max_cost_usd: 'a lot'"),
        ({"max_cost_usd": "-1"}, "route odd: max_cost_usd"),
        ({"max_ttft_ms": 0}, "routes[0].max_ttft_ms"),
        ({"hedge_percent": 101}, "routes[0].hedge_percent"),
        ({"require": ["a b\n"]}, "route odd: require"),
        ({"no_fallback_on": ["mood"]}, "routes[0].no_fallback_on[0]"),
        ({"no_fallback_on": ["error", "error"]}, "route odd: no_fallback_on"),
        ({"policy": "balanced", **{f"weight_{one}": 0 for one in ("quality", "cost", "latency", "load")}},
         "balanced needs a weight above 0"),
        ({"colour": "red"}, "colour"),
        ({"candidates": [{"target": "nobody"}]}, "route odd: candidates[0].target: There is no model 'nobody'"),
        ({"candidates": [{"target": "acme/echo"}, {"target": "acme/echo"}]}, "stands twice"),
        ({"candidates": [{"weight": 1}]}, "target"),
        ({"name": "acme/echo"}, "There is a model 'acme/echo'"),
        ({"name": "auto"}, "route auto: name"),
    ],
)  # fmt: skip
def test_a_route_that_is_wrong_is_refused_by_field_in_a_dry_run_too(
    exported: dict[str, Any], apply: Apply, capsys: Any, route: dict[str, Any], words: str
) -> None:
    document = {**exported, "routes": [{"name": "odd", **route}]}
    with pytest.raises(SystemExit) as ended:
        apply(document, "--dry-run")
    assert ended.value.code in (4, 5)
    assert words in capsys.readouterr().err


def test_two_routes_of_one_name_are_refused(exported: dict[str, Any], apply: Apply, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        apply({**exported, "routes": [{"name": "x"}, {"name": "x"}]})
    assert "the route 'x' stands twice" in capsys.readouterr().err


def test_what_was_changed_by_hand_since_is_shown(exported: dict[str, Any], apply: Apply) -> None:
    update_route(find_route("smart"), actor="ada", policy="priority")
    [(_, _, fields, _)] = apply(exported, "--dry-run")
    assert fields == {"policy": ["priority", "balanced"]}
