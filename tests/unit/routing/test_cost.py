"""Money is whole: no float, no cent lost, and every cost is what its prices say."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.core.cost import MOST_NANO, NO_PRICE, Period, Prices, in_usd, period_label, period_start, to_nano
from routing.core.decision import Candidate, Explanation, Link, RequestFacts
from routing.core.records import DecisionRecord

price = st.decimals(min_value=0, max_value=1000, places=6)
count = st.integers(min_value=0, max_value=10**7)


def test_tokens_cost_what_their_prices_say():
    prices = Prices.of(
        per_million_input=Decimal("0.15"),
        per_million_cached_input=Decimal("0.075"),
        per_million_output=Decimal("0.60"),
    )
    # 800 at 0.15, 200 at 0.075 and 500 at 0.60 dollars a million.
    cost = prices.cost_nano(prompt_tokens=1000, cached_tokens=200, completion_tokens=500)
    assert in_usd(cost) == "0.000435"


def test_cached_tokens_without_a_price_of_their_own_cost_as_much_as_others():
    prices = Prices.of(per_million_input=Decimal(2))
    assert prices.cost_nano(prompt_tokens=100, cached_tokens=90) == prices.cost_nano(prompt_tokens=100)


def test_the_device_hour_is_paid_by_the_share_of_engine_time_and_for_every_device():
    prices = Prices.of(per_device_hour=Decimal("3.60"))
    assert in_usd(prices.cost_nano(engine_s=2.0, completion_tokens=10**6)) == "0.002"
    assert in_usd(prices.cost_nano(engine_s=2.0, devices=4)) == "0.008"


def test_a_token_price_makes_the_device_hour_count_for_nothing():
    prices = Prices.of(per_million_output=Decimal(1), per_device_hour=Decimal(1000))
    assert prices.cost_nano(completion_tokens=10**6, engine_s=3600) == 10**9


def test_what_has_no_price_costs_nothing():
    assert not NO_PRICE.priced
    assert NO_PRICE.cost_nano(prompt_tokens=10**9, engine_s=1e6) == 0


@given(price, price, count, count)
def test_a_cost_is_the_exact_one_rounded_up_to_a_nano_dollar(an_input, an_output, prompt, completion):
    cost = Prices.of(per_million_input=an_input, per_million_output=an_output).cost_nano(
        prompt_tokens=prompt, completion_tokens=completion
    )
    exact = (an_input * prompt + an_output * completion) * 1000
    assert exact <= cost < exact + 1


@given(st.integers(min_value=0, max_value=MOST_NANO))
def test_dollars_are_written_without_loss(nano):
    assert to_nano(Decimal(in_usd(nano))) == nano


@pytest.mark.parametrize(
    ("period", "label", "start"),
    [
        (Period.DAY, "2026-03-31", datetime(2026, 3, 31, tzinfo=UTC)),
        (Period.MONTH, "2026-03", datetime(2026, 3, 1, tzinfo=UTC)),
        (Period.TOTAL, "total", None),
    ],
)
def test_periods_begin_in_utc(period, label, start):
    now = datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    assert period_label(period, now) == label
    assert period_start(period, now) == start


def test_a_decision_is_written_down_and_read_back_as_the_same_values():
    decision = Explanation(
        id="d1",
        revision=3,
        model="m",
        route=None,
        policy="least_loaded",
        served_id="m@1",
        chosen="a",
        chain=(Link(id="a", served_id="m@1", cold=False, ttft_s=0.1, tpot_s=0.01, cost_usd=0.002),),
        candidates=(
            Candidate(id="a", eligible=True, reasons=(), scores={"load": 0.5}),
            Candidate(id="b", eligible=False, reasons=("no replica is ready",), scores={}),
        ),
    )
    facts = RequestFacts(decision_id="d1", model="m", chat=True, prompt_tokens=7)
    record = DecisionRecord(id="d1", at=1.0, key="k", facts=facts, decision=decision)
    assert msgspec.json.decode(msgspec.json.encode(record), type=DecisionRecord) == record
