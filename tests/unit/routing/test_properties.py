"""What holds of every decision, whatever is configured and heard of."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.core.chain import CHAIN
from routing.core.decision import Kind, RequestFacts, decide
from routing.core.filters import in_doubt
from routing.core.route import Constraints, Policy, Wishes
from tests.unit.routing.worlds import constraints, loads_of, option, table_of, wishes, worlds

policies = st.sampled_from(Policy)
requests = st.builds(
    RequestFacts,
    decision_id=st.text(min_size=1, max_size=20),
    model=st.sampled_from(["r", "auto", "m0"]),
    chat=st.booleans(),
    prompt_tokens=st.none() | st.integers(0, 5000),
    prompt_tokens_bound=st.none() | st.integers(0, 5000),
    counted=st.dictionaries(st.sampled_from(["m0@1", "m1@1"]), st.integers(0, 5000)).map(
        lambda found: tuple(found.items())
    ),
    prompt_tokens_estimate=st.integers(0, 5000),
    max_tokens=st.none() | st.integers(0, 5000),
    asks=st.lists(st.sampled_from(["json", "tools"]), max_size=1).map(tuple),
    wishes=wishes,
    allowed=st.sampled_from([(), ("*",), ("m0", "m1*"), ("r",)]),
    budget_left_usd=st.none() | st.floats(0, 0.02),
    deadline_s=st.none() | st.floats(1, 300),
)


@given(worlds(), policies, constraints, requests)
def test_the_chain_is_of_the_eligible_each_once(world, policy, limits, request):
    table = table_of(world, policy, constraints=limits)
    found = decide(table, loads_of(world), request)
    candidates = {one.id: one for one in found.candidates}
    chain = [link.id for link in found.chain]
    eligible = {one.id for one in candidates.values() if one.eligible}

    assert len(set(chain)) == len(chain)
    assert set(chain) <= eligible
    most = 1 if request.wishes.no_fallback else CHAIN
    assert len(chain) == min(len(eligible), most)
    for one in candidates.values():
        assert one.eligible == (not one.reasons)
        assert len(one.kinds) == len(one.reasons)
        assert all(isinstance(reason, str) and reason for reason in one.reasons)
        assert all(math.isfinite(score) for score in one.scores.values())


@given(worlds(), policies, constraints, requests)
def test_whoever_is_chosen_keeps_every_constraint(world, policy, limits, request):
    table = table_of(world, policy, constraints=limits)
    by_id = {one.served_id: one for one in world}
    for link in decide(table, loads_of(world), request).chain:
        one = by_id[link.served_id]
        assert one.deployment is not None
        own = limits if request.model == "r" else Constraints()
        ready = one.load is not None and one.load.ready > 0
        assert ready or (one.deployment.wanted_replicas and not one.deployment.failure)
        assert link.cold == (not ready)
        assert set(own.require) | set(request.wishes.require) <= one.version.words
        assert set(request.asks) <= one.version.capabilities
        for ceiling in (own.max_cost_usd, request.wishes.max_cost_usd, request.budget_left_usd):
            assert ceiling is None or link.cost_usd <= ceiling
        for ceiling in (own.max_ttft_s, request.wishes.max_ttft_s):
            assert ceiling is None or link.ttft_s <= ceiling
        assert own.max_tpot_s is None or link.tpot_s <= own.max_tpot_s
        context = one.deployment.limits.context_length
        if context is not None:
            assert (request.prompt_tokens or 0) + (request.max_tokens or 0) <= context
            assert own.min_context is None or own.min_context <= context


@given(worlds(), policies, constraints, requests, st.randoms(use_true_random=False))
def test_the_same_request_is_always_decided_the_same(world, policy, limits, request, random):
    loads = loads_of(world)
    first = decide(table_of(world, policy, constraints=limits), loads, request)
    again = decide(table_of(world, policy, constraints=limits), loads, request)
    assert first.explained() == again.explained()
    if policy is not Policy.PRIORITY:
        # Nor does it matter in which order the candidates and the beats came.
        shuffled = list(world)
        random.shuffle(shuffled)
        other = decide(table_of(shuffled, policy, constraints=limits), dict(reversed(loads.items())), request)
        assert other.chain == first.chain


@given(worlds(), st.sampled_from([one for one in Policy if one is not Policy.WEIGHTED]), requests, st.data())
def test_one_more_candidate_that_is_worse_never_changes_the_choice(world, policy, request, data):
    """Worse than one that is there: dearer, slower, fuller, less able, with less context, later in the list."""
    request = replace(request, wishes=replace(request.wishes, prefer=()), model="r")
    before = decide(table_of(world, policy), loads_of(world), request)
    original = data.draw(st.sampled_from(world))
    if original.deployment is None or original.load is None:
        return
    worse = option(
        "zz",
        capabilities=original.version.capabilities,
        tags=original.version.tags,
        price_in=(original.version.prices.input_pico or 0) // 10**6 + data.draw(st.integers(0, 9)),
        price_out=(original.version.prices.output_pico or 0) // 10**6 + data.draw(st.integers(0, 9)),
        quality=original.version.quality * data.draw(st.floats(0, 1)),
        context=original.deployment.limits.context_length,
    )
    worse = replace(
        worse,
        deployment=replace(original.deployment, id="zz", served_id="zz@1"),
        load=replace(
            original.load,
            running=original.load.running + data.draw(st.integers(0, 9)),
            waiting=original.load.waiting + data.draw(st.integers(0, 9)),
            ttft_s=original.load.ttft_s + data.draw(st.floats(0, 9)),
        ),
    )
    more = [*world, worse]
    after = decide(table_of(more, policy), loads_of(more), request)
    assert after.chosen == before.chosen


@given(worlds(), requests)
def test_one_more_candidate_takes_requests_but_moves_none_between_the_others(world, request):
    request = replace(request, model="r")
    before = decide(table_of(world, Policy.WEIGHTED), loads_of(world), request)
    more = [*world, option("zz", weight=3.0)]
    after = decide(table_of(more, Policy.WEIGHTED), loads_of(more), request)
    assert after.chosen in (before.chosen, "zz")


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6).filter(any), st.integers(0, 2**32))
def test_shares_are_as_the_weights_say(weights, seed):
    """Within 4.5 standard deviations of a fair draw; a weight of 0 gets nothing while others are there."""
    world = [option(f"m{place}", weight=float(weight)) for place, weight in enumerate(weights)]
    table, count = table_of(world, Policy.WEIGHTED), 1000
    live = table.columns(loads_of(world))
    chosen = Counter(
        decide(table, live, RequestFacts(decision_id=f"{seed}-{number}", model="r")).chosen
        for number in range(count)
    )
    for place, weight in enumerate(weights):
        share = weight / sum(weights)
        spread = 4.5 * math.sqrt(count * share * (1 - share))
        assert abs(chosen[f"m{place}"] - count * share) <= spread


def test_who_is_left_keeps_their_proportions():
    world = [option("a", weight=6.0), option("b", weight=3.0), option("c", weight=1.0, ready=0, wanted=0)]
    table = table_of(world, Policy.WEIGHTED)
    live = table.columns(loads_of(world))
    chosen = Counter(
        decide(table, live, RequestFacts(decision_id=f"n{number}", model="r")).chosen
        for number in range(3000)
    )
    assert chosen["c"] == 0
    assert chosen["a"] / 3000 == pytest.approx(2 / 3, abs=0.04)


@given(worlds(), policies, requests)
def test_a_wish_only_ever_takes_candidates_away(world, policy, request):
    table, loads = table_of(world, policy), loads_of(world)
    free = replace(request, wishes=Wishes(), prompt_tokens_bound=None)
    wished = replace(request, prompt_tokens_bound=None)
    before = {one.id for one in decide(table, loads, free).candidates if one.eligible}
    after = {one.id for one in decide(table, loads, wished).candidates if one.eligible}
    assert after <= before


def test_a_bound_on_the_prompt_prefers_who_surely_fits_and_leaves_a_sole_one_to_its_engine():
    world = [option("big", context=8000), option("small", context=100)]
    facts = RequestFacts(decision_id="d", model="r", prompt_tokens_bound=500, max_tokens=10)
    both = decide(table_of(world), loads_of(world), facts)
    assert [link.id for link in both.chain] == ["big"]
    assert [one.kinds for one in both.candidates] == [(), (Kind.CONTEXT,)]
    alone = decide(table_of(world[1:]), loads_of(world), facts)
    assert alone.chosen == "small"


def test_a_count_by_its_own_tokenizer_lets_a_small_one_have_what_its_bound_was_against():
    world = [option("big", context=8000), option("small", context=100)]
    facts = RequestFacts(decision_id="d", model="r", prompt_tokens_bound=500, max_tokens=10)
    fits = decide(table_of(world), loads_of(world), replace(facts, counted=(("small@1", 90),)))
    assert {link.id for link in fits.chain} == {"big", "small"}
    over = decide(table_of(world), loads_of(world), replace(facts, counted=(("small@1", 91),)))
    assert [link.id for link in over.chain] == ["big"]
    [small] = [one for one in over.candidates if one.id == "small"]
    assert small.reasons == ("needs 101 tokens of context, has 100",)


def test_a_counted_text_that_does_not_fit_is_refused_though_nobody_else_is_left():
    world = [option("small", context=100), option("off", context=8000, wanted=0, ready=0)]
    facts = RequestFacts(decision_id="d", model="r", prompt_tokens_bound=500, counted=(("small@1", 101),))
    assert decide(table_of(world), loads_of(world), facts).chain == ()
    # A chat's count has what a template may add at the most: the engine is the judge.
    assert decide(table_of(world), loads_of(world), replace(facts, chat=True)).chosen == "small"


def test_only_whom_nothing_but_the_bound_speaks_against_is_in_doubt():
    world = [
        option("big", context=8000), option("small", context=100), option("off", context=100, wanted=0, ready=0),
        option("counted", context=100),
    ]  # fmt: skip
    facts = RequestFacts(decision_id="d", model="r", prompt_tokens_bound=500, counted=(("counted@1", 40),))

    def doubtful(request: RequestFacts) -> list[str]:
        seen = decide(table_of(world), loads_of(world), request).judgement
        return in_doubt(seen.slate, seen.live, request, seen.filters)

    assert doubtful(facts) == ["small@1"]
    assert doubtful(replace(facts, prompt_tokens_bound=90)) == []
    assert doubtful(replace(facts, prompt_tokens_bound=None)) == []
