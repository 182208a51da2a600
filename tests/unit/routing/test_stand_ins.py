"""A model's fallbacks stand in for it after a cause; and who may take the place of a choice whose breaker is open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.errors import ModelNotFound
from registry.models import CAUSES, MAX_FALLBACKS
from routing.core.assigner import decide_in_experiments
from routing.core.assignment import BUCKETS, ArmEntry, ExperimentEntry
from routing.core.chain import CHAIN
from routing.core.decision import Decision, RequestFacts, decide
from routing.core.route import CandidateEntry, Cause, Policy, RouteEntry, Wishes
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable
from tests.unit.routing.worlds import Option, loads_of, option, worlds

ALL = frozenset(Cause)


def table_of(
    options: list[Option], fallbacks: tuple[str, ...] = (), *, aliases: Any = None, **more: Any
) -> RoutingTable:
    """A model of each option; the first has these fallbacks (all the others, if none are named)."""
    first, *others = (one.version.model for one in options)
    chain = {"fallbacks": fallbacks or tuple(others), **more.pop("chain", {})}
    return RoutingTable.build(
        revision=1,
        models=[
            ModelEntry(id=first, default=f"{first}@1", **chain),
            *(ModelEntry(id=name, default=f"{name}@1") for name in others),
        ],
        versions=[one.version for one in options],
        aliases=aliases or {},
        deployments=[one.deployment for one in options if one.deployment],
        **more,
    )


def asked(model: str = "a", **more: Any) -> RequestFacts:
    return RequestFacts(decision_id="d", model=model, **more)


def ids(found: Decision) -> list[str]:
    return [link.id for link in found.chain]


def decided(options: list[Option], request: RequestFacts, *broken: str, **more: Any) -> Decision:
    table = table_of(options, **more)
    live = table.columns(loads_of(options))
    for deployment in broken:
        live.set_breaker(deployment, True)
    return decide(table, live, request)


def test_the_registry_knows_every_cause_and_the_longest_chain() -> None:
    assert tuple(Cause) == CAUSES
    assert MAX_FALLBACKS + 1 == CHAIN


def test_a_models_own_version_comes_first_however_busy_it_is() -> None:
    found = decided([option("a", running=9), option("c"), option("b")], asked())
    assert ids(found) == ["a", "c", "b"]
    assert found.route is None
    assert found.explained().policy == "priority"


@pytest.mark.parametrize(("id", "chain"), [("a@now", ["a", "b"]), ("a@1", ["a"]), ("b", ["b"])])
def test_an_alias_has_the_chain_a_version_and_a_fallback_have_none(id: str, chain: list[str]) -> None:
    options = [option("a"), option("b")]
    assert ids(decided(options, asked(id), aliases={"a@now": "a@1"})) == chain


def test_what_is_named_twice_is_tried_once_and_what_means_nothing_is_a_problem() -> None:
    options = [option("a"), option("b")]
    found = decided(
        options, asked(), fallbacks=("gone", "b@now", "b@1", "a@1", "b"), aliases={"b@now": "b@1"}
    )
    assert ids(found) == ["a", "b"]
    assert found.explained().problems == ("The model 'gone' does not exist.",)


def test_a_route_has_no_share_in_a_models_chain() -> None:
    route = RouteEntry(id="r", candidates=(CandidateEntry(target="a"),))
    assert ids(decided([option("a"), option("b")], asked("r"), routes=[route])) == ["a"]


def test_what_sleeps_is_waited_for() -> None:
    found = decided([option("a", ready=0, load_s=20.0), option("b")], asked())
    assert ids(found) == ["a", "b"]
    assert found.chain[0].cold


@pytest.mark.parametrize(
    ("own", "request_", "cause"),
    [
        ({"ready": 0, "wanted": 0}, {}, Cause.ERROR),
        ({"ready": 0, "failure": "out of memory"}, {}, Cause.ERROR),
        ({"ready": 0, "load_s": 900.0}, {"deadline_s": 60.0}, Cause.TIMEOUT),
        ({"ttft_s": 9.0}, {"wishes": Wishes(max_ttft_s=1.0)}, Cause.TIMEOUT),
        ({"context": 16}, {"prompt_tokens": 100}, Cause.CONTEXT),
        ({"price_in": 10, "price_out": 10}, {"max_tokens": 100, "budget_left_usd": 1e-6}, Cause.BUDGET),
        ({}, {}, Cause.BREAKER),
    ],
)
def test_each_cause_that_is_known_beforehand_leads_on_unless_the_model_forbids_it(
    own: dict[str, Any], request_: dict[str, Any], cause: Cause
) -> None:
    options, request = [option("a", **own), option("b")], asked(**request_)
    broken = ("a",) if cause is Cause.BREAKER else ()
    assert ids(decided(options, request, *broken)) == ["b"]
    assert ids(decided(options, request, *broken, chain={"fallback_on": frozenset({cause})})) == ["b"]

    refused = decided(options, request, *broken, chain={"fallback_on": ALL - {cause}})
    assert ids(refused) == []
    assert refused.served_id == "a@1"
    reasons = {one.id: one.reasons for one in refused.candidates}
    assert reasons["b"] == ("it does not stand in for a@1 in this case",)

    wish = replace(request, wishes=replace(request.wishes, no_fallback=True))
    assert ids(decided(options, wish, *broken)) == []


@pytest.mark.parametrize(
    "request_",
    [
        {"allowed": ("b",)},
        {"asks": ("json",)},
        {"wishes": Wishes(require=("region=eu",))},
        {"wishes": Wishes(max_cost_usd=1e-9)},
    ],
)
def test_what_the_client_or_its_key_asks_for_is_no_cause(request_: dict[str, Any]) -> None:
    other = option("b", capabilities=("json",), tags=("region=eu",))
    assert ids(decided([option("a", price_in=1, price_out=1), other], asked(**request_))) == []


def test_a_key_uses_those_of_the_fallbacks_that_it_may() -> None:
    found = decided([option("a"), option("b"), option("c")], asked(allowed=("a", "c")))
    assert ids(found) == ["a", "c"]


def test_nobody_stands_in_because_he_is_liked_better() -> None:
    options = [option("a"), option("b", tags=("region=eu",))]
    assert ids(decided(options, asked(wishes=Wishes(prefer=("region=eu",))))) == ["a", "b"]


def test_a_prompt_that_only_may_be_too_long_is_the_engines_to_judge() -> None:
    options = [option("a", context=16), option("b", context=4096)]
    table = table_of(options)
    assert not table.slate("a").contexts_differ
    found = decide(table, loads_of(options), asked(prompt_tokens_bound=100))
    assert ids(found) == ["a", "b"]


def test_an_arm_has_the_models_chain_behind_it() -> None:
    options = [option("a"), option("n"), option("b")]
    experiment = ExperimentEntry(
        id=1, name="speed", targets=("a",), unit="key", salt=7, phase=1,
        arms=(ArmEntry(id=1, name="new", served_id="n@1"),), deal=((0, 1), (BUCKETS, None)),
    )  # fmt: skip
    rules = {"fallbacks": ("b",), "fallback_on": ALL - {Cause.ERROR}, "first_token_s": 2.0}
    table = table_of(options, chain=rules, experiments=[experiment])
    found = decide_in_experiments(table, loads_of(options), asked(key="k"))
    assert ids(found) == ["n", "a", "b"]
    slate = found.judgement.slate
    assert (slate.fallback_on, slate.first_token_s) == (ALL - {Cause.ERROR}, 2.0)
    alone = decide_in_experiments(table, loads_of(options), asked(key="k", wishes=Wishes(no_fallback=True)))
    assert ids(alone) == ["n"]


def test_an_unknown_id_is_unknown_still() -> None:
    table = table_of([option("a"), option("b")])
    with pytest.raises(ModelNotFound):
        table.slate("a@none")


@given(worlds(most=5), st.sets(st.sampled_from(Cause)), st.data())
def test_with_fallbacks_whoever_served_before_serves_as_before(
    world: list[Option], forbidden: set[Cause], data: st.DataObject
) -> None:
    broken = data.draw(st.sets(st.sampled_from([one.version.model for one in world])))
    request = asked("m0", prompt_tokens=data.draw(st.integers(0, 200)))
    chain = {"fallback_on": ALL - forbidden}
    alone = ids(decided(world, replace(request, model="m0@1"), *broken))
    found = decided(world, request, *broken, chain=chain)
    assert ids(found)[: len(alone)] == alone
    assert len(set(ids(found))) == len(found.chain)
    eligible = {one.id for one in found.candidates if one.eligible}
    assert eligible >= set(ids(found))


def test_where_the_breaker_is_no_cause_another_cause_of_another_deployment_is_none_either() -> None:
    open_one, unloaded, other = option("a"), option("a2", ready=0, wanted=0), option("b")
    assert unloaded.deployment
    beside = replace(unloaded.deployment, served_id="a@1")
    table = RoutingTable.build(
        revision=1,
        models=[
            ModelEntry(id="a", default="a@1", fallbacks=("b",), fallback_on=ALL - {Cause.BREAKER}),
            ModelEntry(id="b", default="b@1"),
        ],
        versions=[open_one.version, other.version],
        aliases={},
        deployments=[open_one.deployment, beside, other.deployment],
    )
    live = table.columns(loads_of([open_one, other]))
    live.set_breaker("a", True)
    assert ids(decide(table, live, asked())) == []
    live.set_breaker("a", False)
    assert ids(decide(table, live, asked()))[0] == "a"


# A route, and a breaker that forbids anybody else.

NOT_BREAKER = {"fallback_on": ALL - {Cause.BREAKER}}


def routed(options: list[Option], policy: Policy, *broken: str, **route: Any) -> Decision:
    entry = RouteEntry(
        id="r",
        candidates=tuple(CandidateEntry(target=one.version.model) for one in options),
        policy=policy,
        **route,
    )
    return decided(options, asked("r"), *broken, routes=[entry])


@pytest.mark.parametrize("policy", list(Policy))
def test_the_choice_without_regard_to_breakers_is_tried_or_nobody(policy: Policy) -> None:
    options = [
        option("a", quality=0.9, price_in=1),
        option("b", running=3, price_in=2),
        option("c", running=8),
    ]
    meant = ids(routed(options, policy))
    assert ids(routed(options, policy, meant[0], **NOT_BREAKER)) == []
    # Of the others' breakers nobody has to know.
    assert ids(routed(options, policy, meant[1], **NOT_BREAKER)) == [meant[0], meant[2]]
    assert ids(routed(options, policy, meant[0])) == meant[1:]


def test_a_refusal_says_whose_breaker_it_is() -> None:
    found = routed([option("a"), option("b")], Policy.PRIORITY, "a", **NOT_BREAKER)
    assert {one.id: one.reasons for one in found.candidates} == {
        "a": ("its circuit breaker is open",),
        "b": ("nobody takes the place of a, whose circuit breaker is open",),
    }


def test_who_is_out_for_another_reason_too_is_not_the_choice() -> None:
    options = [option("a", ready=0, wanted=0), option("b")]
    assert ids(routed(options, Policy.PRIORITY, "a", **NOT_BREAKER)) == ["b"]


def test_another_deployment_of_the_same_version_is_the_same_choice() -> None:
    options = [option("a"), option("b")]
    twin = DeploymentEntry(id="twin", served_id="a@1", limits=Limits(context_length=4096))
    more = replace(options[0], deployment=twin, load=replace(options[0].load, running=5))
    entry = RouteEntry(
        id="r",
        candidates=(CandidateEntry(target="a"), CandidateEntry(target="b")),
        policy=Policy.LEAST_LOADED,
        **NOT_BREAKER,
    )
    table = RoutingTable.build(
        revision=1,
        models=[ModelEntry(id=name, default=f"{name}@1") for name in ("a", "b")],
        versions=[one.version for one in options],
        aliases={},
        deployments=[options[0].deployment, options[1].deployment, twin],
        routes=[entry],
    )
    loads = {"a": options[0].load, "b": replace(options[1].load, running=2), "twin": more.load}
    live = table.columns(loads)
    live.set_breaker("a", True)
    assert ids(decide(table, live, asked("r"))) == ["twin"]
