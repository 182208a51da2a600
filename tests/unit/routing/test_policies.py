"""Each policy's order, the wishes of a request, and what a decision says of itself."""

from __future__ import annotations

import pytest

from mmserve.errors import ModelNotFound
from routing.core.decision import RequestFacts, decide
from routing.core.live import Latency
from routing.core.replay import NOBODY, imagined, replay
from routing.core.route import CandidateEntry, Constraints, Policy, RouteEntry, Weights, Wishes
from routing.core.scorer import TRAITS, Scorer, traits_of
from tests.unit.routing.worlds import loads_of, option, table_of

CHEAP = option("cheap", price_in=1, price_out=1, ttft_s=2.0, running=8, quality=0.3)
FAST = option("fast", price_in=9, price_out=9, ttft_s=0.1, running=4, quality=0.5)
GOOD = option("good", price_in=30, price_out=30, ttft_s=1.0, running=1, quality=0.9)
WORLD = [GOOD, CHEAP, FAST]


def facts(**more: object) -> RequestFacts:
    return RequestFacts(**{"decision_id": "d", "model": "r", "prompt_tokens": 100, "max_tokens": 100, **more})


def order(policy: Policy, request: RequestFacts | None = None, **more: object) -> list[str]:
    table = table_of(WORLD, policy, **more)
    return [link.id for link in decide(table, loads_of(WORLD), request or facts()).chain]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy.LEAST_COST, ["cheap", "fast", "good"]),
        (Policy.LOWEST_LATENCY, ["fast", "good", "cheap"]),
        (Policy.LEAST_LOADED, ["good", "fast", "cheap"]),
        (Policy.PRIORITY, ["good", "cheap", "fast"]),
    ],
)
def test_each_policy_has_its_order(policy, expected):
    assert order(policy) == expected


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        (Weights(quality=1, cost=0, latency=0, load=0), "good"),
        (Weights(quality=0, cost=1, latency=0, load=0), "cheap"),
        (Weights(quality=0, cost=0, latency=1, load=0), "fast"),
        (Weights(quality=0, cost=0, latency=0, load=7), "good"),
    ],
)
def test_balanced_follows_what_weighs(weights, first):
    assert order(Policy.BALANCED, weights=weights)[0] == first


def test_a_loaded_but_slow_one_is_weighed_against_a_cold_but_cheap_one_by_prediction():
    slow = option("slow", ttft_s=30.0)
    cold = option("cold", ready=0, load_s=5.0)
    world = [slow, cold]
    found = decide(table_of(world, Policy.LOWEST_LATENCY), loads_of(world), facts())
    assert [(link.id, link.cold) for link in found.chain] == [("cold", True), ("slow", False)]
    ceiling = facts(wishes=Wishes(max_ttft_s=4.0))
    refused = decide(table_of(world, Policy.LOWEST_LATENCY), loads_of(world), ceiling)
    assert refused.chain == ()
    assert refused.candidates[0].reasons == ("predicted TTFT 5000 ms, the ceiling is 4000 ms",)


def test_a_learned_latency_takes_the_place_of_the_measured_average():
    table = table_of(WORLD, Policy.LOWEST_LATENCY)
    live = table.columns(loads_of(WORLD))
    live.learn("fast", Latency(base_s=1.0, per_token_s=0.1, tpot_s=0.01))
    found = decide(table, live, facts())
    assert {link.id: link.ttft_s for link in found.chain}["fast"] == pytest.approx(11.0)
    assert found.chosen == "good"
    live.learn("fast", None)
    assert decide(table, live, facts()).chosen == "fast"


def test_an_open_breaker_takes_a_deployment_out_and_a_new_table_remembers_it():
    table = table_of(WORLD, Policy.LOWEST_LATENCY)
    live = table.columns(loads_of(WORLD))
    live.set_breaker("fast", True)
    anew = table_of(WORLD, Policy.LOWEST_LATENCY).columns()
    anew.take_over(live)
    for columns in (live, anew):
        found = decide(table, columns, facts())
        assert found.chosen == "good"
        assert {one.id: one.reasons for one in found.candidates}["fast"] == ("its circuit breaker is open",)
    live.set_breaker("fast", False)
    assert decide(table, live, facts()).chosen == "fast"


def test_what_is_preferred_comes_first_and_no_fallback_leaves_one():
    tagged = [*WORLD[:2], option("fast", tags=["region=eu"])]
    table = table_of(tagged, Policy.PRIORITY)

    def chain(wishes: Wishes) -> list[str]:
        return [link.id for link in decide(table, loads_of(tagged), facts(wishes=wishes)).chain]

    assert chain(Wishes(prefer=("region=eu",))) == ["fast", "good", "cheap"]
    assert chain(Wishes(prefer=("cheap",), no_fallback=True)) == ["cheap"]
    assert chain(Wishes(require=("region=eu",))) == ["fast"]


def test_the_reasons_are_in_words():
    limits = Constraints(require=("region=eu", "tools"), max_cost_usd=0.0001, min_context=5000)
    found = decide(
        table_of([GOOD], constraints=limits),
        loads_of([GOOD]),
        facts(asks=("json",), allowed=("other",), budget_left_usd=0.001, budget="team red's budget"),
    )
    assert found.candidates[0].reasons == (
        "lacks json",
        "is not tagged region=eu",
        "lacks tools",
        "the route asks for 5000 tokens of context, it has 4096",
        "costs about $0.006, the ceiling is $0.0001",
        "costs about $0.006, team red's budget has $0.001 left",
        "the key may not use it",
    )


def test_a_key_of_a_route_may_use_what_the_route_chooses_but_auto_asks_for_each():
    table, loads = table_of(WORLD, Policy.PRIORITY), loads_of(WORLD)
    assert decide(table, loads, facts(allowed=("r",))).chosen == "good"
    assert decide(table, loads, facts(allowed=("r",), model="auto")).chosen is None
    assert decide(table, loads, facts(allowed=("f*",), model="auto")).chosen == "fast"
    assert decide(table, loads, facts(allowed=("cheap@1", "fast"))).chosen == "cheap"


def test_a_switched_off_route_is_not_there():
    route = RouteEntry(id="off", candidates=(CandidateEntry(target="good"),), enabled=False)
    table = table_of(WORLD)
    table = type(table).build(
        revision=1,
        models=table.models.values(),
        versions=table.versions.values(),
        aliases={},
        deployments=table.deployments.values(),
        routes=[route],
    )
    with pytest.raises(ModelNotFound, match="switched off"):
        decide(table, {}, facts(model="off"))


def test_two_lines_of_one_version_are_one_candidate_and_a_gone_one_is_a_problem():
    table = table_of(WORLD)
    route = RouteEntry(
        id="twice",
        policy=Policy.PRIORITY,
        candidates=(
            CandidateEntry(target="good", weight=2.0),
            CandidateEntry(target="nowhere"),
            CandidateEntry(target="good@1", weight=3.0),
        ),
    )
    slate = table.slate_of(route)
    assert slate.ids == ("good",)
    assert slate.weight.tolist() == [5.0]
    assert slate.problems == ("The model 'nowhere' does not exist.",)


def test_the_scorer_judges_by_the_prompt_and_knows_nothing_of_others():
    code = TRAITS.index("code")
    weights = tuple(4.0 if place == code else -1.0 for place in range(len(TRAITS)))
    table = table_of(
        WORLD,
        weights=Weights(quality=1, cost=0, latency=0, load=0),
        scorer=Scorer(name="1", weights={"cheap@1": weights}),
    )
    hard = facts(traits=traits_of("Fix this:\n```\ndef f(x):\n```"))
    soft = facts(traits=traits_of("Who wrote Faust?"))
    assert decide(table, loads_of(WORLD), hard).chosen == "cheap"
    assert decide(table, loads_of(WORLD), soft).chosen == "good"


def test_traits_are_between_0_and_1_and_read_a_prompt():
    found = dict(zip(TRAITS, traits_of("Wie löst man x = 3 * 7 + 1?"), strict=True))
    assert (found["maths"], found["question"], found["code"]) == (1.0, 1.0, 0.0)
    assert 0 < found["other_script"] < 0.1
    assert all(0 <= value <= 1 for value in traits_of("") + traits_of("é" * 100_000))


def test_a_replay_says_what_a_draft_would_move():
    table = table_of(WORLD, Policy.PRIORITY)
    draft = RouteEntry(id="r", candidates=(CandidateEntry(target="cheap"), CandidateEntry(target="good")))
    found = replay(imagined("r", 400), table, table.columns(loads_of(WORLD)), draft)
    assert found.requests == 400
    assert found.before.shares == {"good@1": 1.0}
    assert found.after.shares["cheap@1"] == pytest.approx(0.5, abs=0.1)
    assert found.moved_share == pytest.approx(0.5, abs=0.1)
    assert found.before.cost_usd == pytest.approx(0.012)
    assert found.after.cost_usd < found.before.cost_usd
    gone = replay(imagined("r", 10), table, table.columns(), RouteEntry(id="r", candidates=()))
    assert gone.after.shares == {NOBODY: 1.0}
    assert gone.after.cost_usd is None
