"""The experiments' commands: what they print, and how they end."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import call_command

from routing.actions import experiments as actions
from routing.experiments.settle import settle
from routing.models.experiments import Experiment
from tests.integration.api.test_experiments import draft, traffic, versions

__all__ = ["draft", "versions"]  # fixtures


def run(*arguments: str) -> Any:
    out = io.StringIO()
    call_command(*arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_an_experiment_lives_by_commands(versions: Any) -> None:
    made = run(
        "experiment_create", "faster", "acme/echo", "--control", "acme/echo@1", "--arm", "new=acme/echo@2:25",
        "--metric", "e2e", "--smallest-effect", "0.1", "--guardrail", "error_rate=0.2", "--reason", "try",
    )  # fmt: skip
    assert made["arms"] == ["control acme/echo@1 50", "new acme/echo@2 25"]
    assert run("experiment_start", "faster")["state"] == "ramping"
    assert run("experiment_ramp", "faster")["exposure"] == pytest.approx(0.15)
    assert run("experiment_pause", "faster")["state"] == "paused"
    assert run("experiment_resume", "faster")["state"] == "ramping"
    assert [row["name"] for row in run("experiment_list", "--state", "ramping")] == ["faster"]
    assert run("experiment_conclude", "faster", "--winner", "new")["winner"] == "new"
    assert run("experiment_ship", "faster")["state"] == "shipped"
    assert versions[0].model.aliases.get(is_default=True).version == versions[1]


def test_experiment_report_says_what_the_page_says(draft: Experiment) -> None:
    draft.ramp = []
    actions.start_experiment(draft, actor="tests")
    settle(traffic(1500, seconds=(1.0, 0.4)))
    found = run("experiment_report", "faster")
    assert found["verdict"] == "better"
    assert found["comparisons"]["new"]
    out = io.StringIO()
    call_command("experiment_report", "faster", stdout=out)
    assert "new is better" in out.getvalue()


def test_experiment_abort_rolls_back(draft: Experiment) -> None:
    actions.start_experiment(draft, actor="tests")
    assert run("experiment_abort", "faster", "--reason", "no")["state"] == "rolled_back"


def test_what_cannot_be_ends_with_its_code(draft: Experiment) -> None:
    for arguments, code in (
        (("experiment_report", "nobody"), 3),
        (("experiment_ramp", "faster"), 4),
        (("experiment_ship", "faster", "--winner", "nobody"), 5),
        (("experiment_create", "x", "acme/echo", "--control", "acme/echo@1", "--arm", "new"), 5),
    ):
        with pytest.raises(SystemExit) as ended:
            call_command(*arguments, stderr=io.StringIO())
        assert ended.value.code == code, arguments
