"""Which deployment is chosen, and why the others are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.errors import ModelNotFound
from routing.core.decision import (
    LOADING,
    NO_CHAT_TEMPLATE,
    NO_REPLICA,
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


def test_the_least_loaded_deployment_is_chosen_and_the_others_follow():
    live = {"a": ready(running=8), "b": ready(running=1), "c": ready(running=4)}
    found = decide(table(entry("a"), entry("b"), entry("c")), live, RequestFacts(decision_id="d", model="m"))
    assert (found.chosen, found.chain) == ("b", ("b", "c", "a"))
    assert (found.id, found.revision, found.served_id) == ("d", 3, "m@1")


def test_every_rejected_candidate_carries_its_reasons():
    live = {"loading": DeploymentLoad(loading=1), "small": ready(context_length=10), "plain": ready()}
    found = decide(
        table(entry("off"), entry("loading"), entry("small"), entry("plain", has_chat_template=False)),
        live,
        RequestFacts(decision_id="d", model="m", chat=True, prompt_tokens=8, max_tokens=8),
    )
    assert found.chosen is None
    assert {one.id: one.reasons for one in found.candidates} == {
        "loading": (LOADING,),
        "off": (NO_REPLICA,),
        "plain": (NO_CHAT_TEMPLATE,),
        "small": ("needs 16 tokens of context, has 10",),
    }


def test_a_deployments_own_context_length_wins_over_the_replicas():
    limited = table(entry("a", limits=Limits(context_length=4)))
    found = decide(
        limited, {"a": ready(context_length=4096)}, RequestFacts(decision_id="d", model="m", max_tokens=5)
    )
    assert found.chosen is None


def test_an_unknown_model_is_an_error_not_an_empty_decision():
    with pytest.raises(ModelNotFound):
        decide(table(), {}, RequestFacts(decision_id="d", model="nobody"))


loads = st.builds(
    DeploymentLoad,
    ready=st.integers(0, 3),
    loading=st.integers(0, 3),
    running=st.integers(0, 100),
    waiting=st.integers(0, 100),
    max_streams=st.integers(0, 100),
)


@given(st.dictionaries(st.sampled_from("abcdef"), loads))
def test_the_chain_is_the_eligible_candidates_each_once(live):
    found = decide(table(*map(entry, "abcdef")), live, RequestFacts(decision_id="d", model="m"))
    eligible = {one.id for one in found.candidates if one.eligible}
    assert set(found.chain) == eligible
    assert len(found.chain) == len(eligible)
    assert found.chosen == (found.chain[0] if found.chain else None)
    assert all(one.eligible != bool(one.reasons) for one in found.candidates)
    assert all(live[name].ready for name in found.chain)
