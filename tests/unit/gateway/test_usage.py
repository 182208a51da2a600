"""Who pays for what: finished, left, failed, hedged; by tokens and by the engine's time."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from inference.gateway.plan import most_prompt_tokens
from inference.gateway.usage import CANCELLED, COMPLETED, cost_nano, most_cost_nano
from inference.protocol import Sampling
from routing.core.cost import NANO, NO_PRICE, Prices
from routing.core.table import DeploymentEntry, Limits
from tests.unit.gateway.flights import flight, plan

BY_TOKENS = Prices.of(
    per_million_input=Decimal(1), per_million_cached_input=Decimal("0.5"), per_million_output=Decimal(2)
)
BY_HOUR = Prices.of(per_device_hour=Decimal("3.6"))  # a tenth of a cent a second


def used(**fields: float) -> object:
    found = flight()
    found.prompt_tokens, found.completion_tokens, found.cached_tokens = 10, 5, 4
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def test_a_finished_answer_pays_for_its_tokens_and_less_for_cached_ones():
    assert cost_nano(used(), BY_TOKENS) == 6 * 1000 + 4 * 500 + 5 * 2000


def test_a_client_that_left_pays_for_what_was_made():
    assert cost_nano(used(), BY_TOKENS, CANCELLED) == cost_nano(used(), BY_TOKENS, COMPLETED)


@pytest.mark.parametrize(("delivered", "cost"), [(False, 0), (True, 18_000)])
def test_a_failure_costs_only_what_the_client_has_of_it(delivered, cost):
    assert cost_nano(used(delivered=delivered), BY_TOKENS, "engine_lost") == cost


def test_the_device_hour_is_paid_by_the_measured_share():
    assert cost_nano(used(engine_s=2.0), BY_HOUR) == 2 * NANO // 1000


def test_a_client_that_left_shares_the_time_since_an_engine_took_it_with_who_else_ran():
    found = used(accepted_at=time.monotonic() - 8.0)
    alone = cost_nano(found, BY_HOUR, CANCELLED)
    shared = cost_nano(found, BY_HOUR, CANCELLED, running=4)
    assert 8 * NANO // 1000 <= alone <= 9 * NANO // 1000
    assert shared == pytest.approx(alone / 4, rel=0.05)


def test_one_that_no_engine_took_pays_nothing_for_time():
    assert cost_nano(used(), BY_HOUR, CANCELLED) == 0


def test_what_has_no_price_reserves_and_costs_nothing():
    assert cost_nano(used(), NO_PRICE) == most_cost_nano(plan(), NO_PRICE, entry()) == 0


def entry(**limits: float) -> DeploymentEntry:
    return DeploymentEntry(id="d", served_id="m@1", limits=Limits(**limits), devices=2)


@pytest.mark.parametrize(
    ("limits", "max_tokens", "output"),
    [
        ({}, 7, 7),
        ({"max_output_tokens": 50, "context_length": 900}, None, 50),
        ({"context_length": 900}, None, 900),
        ({}, None, 1024),
    ],
)
def test_the_most_that_it_can_cost_is_by_max_tokens_else_by_the_whole_context(limits, max_tokens, output):
    asked = plan("completions", sampling=Sampling(max_tokens=max_tokens, n=3))
    assert most_cost_nano(asked, BY_TOKENS, entry(**limits)) == 3 * 1000 + 3 * output * 2000


def test_by_the_hour_it_is_the_deadline_on_every_device():
    assert most_cost_nano(plan(), BY_HOUR, entry(default_deadline_s=10.0)) == 2 * 10 * NANO // 1000


def test_the_bound_of_a_prompt_counts_bytes_never_characters():
    assert most_prompt_tokens(plan("completions", prompts=["äö"])) == 5
    assert most_prompt_tokens(plan("completions", prompts=[[1, 2, 3]])) == 3
    assert most_prompt_tokens(plan()) >= 2 + 16
