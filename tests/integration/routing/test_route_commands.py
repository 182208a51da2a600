"""route_list, route_show, route_explain, router_train."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from routing.actions.routes import create_route
from routing.models.routes import TrainedScorer
from tests.integration.api.conftest import source
from tests.integration.registry.test_commands import refused, run
from tests.integration.routing.test_routes import lines, versions

__all__ = ["source", "versions"]


@pytest.fixture
def route(versions: Any) -> Any:
    return create_route(
        "fast",
        actor="tests",
        policy="priority",
        candidates=lines("acme/small", "acme/large@1"),
        max_ttft_ms=500,
    )


def test_route_list_and_route_show(route: Any) -> None:
    (row,) = run("route_list")
    assert (row["name"], row["policy"], row["candidates"]) == (
        "fast",
        "priority",
        ["acme/small", "acme/large@1"],
    )
    shown = run("route_show", "fast")
    assert shown["max_ttft_ms"] == 500
    assert shown["candidates"][1] == {"target": "acme/large@1", "weight": 1.0, "note": ""}
    code, words = refused("route_show", "fats")
    assert code == 3
    assert "Did you mean fast?" in words


def test_route_explain_says_who_would_serve_and_why_not(route: Any) -> None:
    rows = run("route_explain", "fast", "--max-tokens", "5")
    assert [row["id"] for row in rows] == ["acme-large", "acme-small"]
    assert rows[0]["reasons"] == ["predicted TTFT 60000 ms, the ceiling is 500 ms"]
    free = run("route_explain", "acme/large")
    assert (free[0]["place"], free[0]["reasons"]) == (1, [])
    assert refused("route_explain", "nobody")[0] == 3


def test_router_train_learns_from_a_file_and_keeps_the_evaluation(tmp_path: Path, db: None) -> None:
    rng = random.Random(3)
    file = tmp_path / "rated.jsonl"
    with file.open("w") as out:
        for number in range(200):
            code = number % 2
            prompt = "def f(x): return x" if code else "Who wrote Faust?"
            good = rng.random() < (0.9 if code else 0.2)
            out.write(json.dumps({"model": "coder@1", "prompt": prompt, "rating": float(good)}) + "\n")
    found = run("router_train", str(file), "--use")
    row = TrainedScorer.objects.get()
    assert (found["number"], row.in_use, row.rows) == (1, True, 200)
    assert found["gain"] > 0.1
    assert row.weights["coder@1"][3] > 0
    run("router_train", str(file))
    assert [one.in_use for one in TrainedScorer.objects.order_by("number")] == [True, False]


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", "line 1"), ('{"model": "m@1", "prompt": "x", "rating": 2}', "line 1"), ("", "No version has")],
)
def test_router_train_refuses_what_it_cannot_learn_from(
    tmp_path: Path, db: None, line: str, words: str
) -> None:
    file = tmp_path / "rated.jsonl"
    file.write_text(line + "\n")
    code, said = refused("router_train", str(file))
    assert code == 5
    assert words in said
