"""Which deployment is chosen, and why the others are not."""

from __future__ import annotations

import pytest

from mmserve.errors import ModelNotFound
from routing.core.decision import (
    LOADING,
    NO_CHAT_TEMPLATE,
    NO_REPLICA,
    Decision,
    DeploymentLoad,
    RequestFacts,
    decide,
)
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry


def table(*entries: DeploymentEntry) -> RoutingTable:
    return RoutingTable.build(
        revision=3,
        models=[ModelEntry(id="m", default="m@1")],
        versions=[VersionEntry(served_id="m@1", model="m")],
        aliases={},
        deployments=entries,
    )


def entry(name: str, **more: object) -> DeploymentEntry:
    return DeploymentEntry(id=name, served_id="m@1", **more)


def ready(**more: float) -> DeploymentLoad:
    return DeploymentLoad(ready=1, max_streams=10, **more)


def ids(found: Decision) -> list[str]:
    return [link.id for link in found.chain]


def test_the_least_loaded_deployment_is_chosen_and_the_others_follow():
    live = {"a": ready(running=8), "b": ready(running=1), "c": ready(running=4)}
    found = decide(table(entry("a"), entry("b"), entry("c")), live, RequestFacts(decision_id="d", model="m"))
    assert (found.chosen, ids(found)) == ("b", ["b", "c", "a"])
    assert (found.id, found.revision, found.served_id, found.route) == ("d", 3, "m@1", None)


def test_every_rejected_candidate_carries_its_reasons():
    live = {"loading": DeploymentLoad(loading=1), "small": ready(context_length=10), "plain": ready()}
    found = decide(
        table(
            entry("off", wanted_replicas=0),
            entry("loading", wanted_replicas=0),
            entry("broken", failure="out of memory"),
            entry("slow", load_s=900.0),
            entry("small"),
            entry("plain", has_chat_template=False),
        ),
        live,
        RequestFacts(decision_id="d", model="m", chat=True, prompt_tokens=8, max_tokens=8),
    )
    assert found.chosen is None
    assert {one.id: one.reasons for one in found.candidates} == {
        "loading": (LOADING,),
        "off": (NO_REPLICA,),
        "broken": ("it cannot be loaded: out of memory",),
        "slow": ("it is not up, and is expected in 900 s: longer than this request may take (300 s)",),
        "plain": (NO_CHAT_TEMPLATE,),
        "small": ("needs 16 tokens of context, has 10",),
    }


def test_what_a_request_can_bring_up_comes_after_all_that_is_ready():
    found = decide(
        table(entry("asleep", load_s=20.0), entry("busy")),
        {"busy": ready(running=10, waiting=50)},
        RequestFacts(decision_id="d", model="m"),
    )
    assert [(link.id, link.cold) for link in found.chain] == [("busy", False), ("asleep", True)]
    assert found.chain[1].ttft_s == 20.0


def test_a_deployments_own_context_length_wins_over_the_replicas():
    limited = table(entry("a", limits=Limits(context_length=4)))
    found = decide(
        limited, {"a": ready(context_length=4096)}, RequestFacts(decision_id="d", model="m", max_tokens=5)
    )
    assert found.chosen is None


def test_an_unknown_model_is_an_error_not_an_empty_decision():
    with pytest.raises(ModelNotFound):
        decide(table(), {}, RequestFacts(decision_id="d", model="nobody"))


def test_a_version_that_nothing_deploys_says_so():
    found = decide(table(), {}, RequestFacts(decision_id="d", model="m"))
    assert found.chosen is None
    assert [(one.id, one.reasons) for one in found.candidates] == [("m@1", ("nothing deploys it",))]
