"""Who is in which arm, as a client sees it: asked over HTTP."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from routing.core.assignment import ExperimentEntry, Group, deal
from tests.integration.gateway.conftest import Gateway, heard
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.test_experiments import BODY, experiment, records, table

HALVES = deal((), {1: 5000, 2: 5000})
USERS = 200
# Of 200 users a share of a half strays by 7 (one standard deviation): five of them are no accident.
FIVE_SIGMA = 5 * 7
CHAT = {"model": "acme/echo", "messages": [{"role": "user", "content": "say"}], "max_tokens": 8}


async def arm(gateway: Gateway, *, headers: dict[str, str] | None = None, **body: Any) -> tuple[str, str]:
    """Experiment and arm of a request that is not sent; two empty words outside of all."""
    base = {} if "messages" in body else BODY
    answer = await gateway.client.post("/v1/routing/explain", {**base, **body}, headers=headers or {})
    assert answer.status == 200, answer.body
    for one in answer.json()["assignments"]:
        return one["experiment"], one["arm"]
    return "", ""


async def of_users(gateway: Gateway, **body: Any) -> list[tuple[str, str]]:
    return [await arm(gateway, user=f"u{number}", **body) for number in range(USERS)]


def use(gateway: Gateway, *experiments: ExperimentEntry) -> None:
    gateway.runtime.table._table = table(*experiments)


@pytest.mark.parametrize(
    ("unit", "asked"),
    [
        ("user", lambda number: {"user": f"u{number}"}),
        ("session", lambda number: {"headers": {"x-mmserve-session": f"s{number}"}}),
    ],
)
async def test_a_unit_keeps_its_arm_and_units_fall_into_both(open_gateway, unit, asked):
    async with open_gateway() as gateway:
        use(gateway, experiment(unit=unit, deal=HALVES))
        first = [await arm(gateway, **asked(number)) for number in range(USERS)]
        again = [await arm(gateway, **asked(number), max_tokens=3) for number in range(USERS)]
    assert first == again
    assert abs(Counter(first)["faster", "new"] - USERS / 2) < FIVE_SIGMA


async def test_a_key_is_one_unit_and_each_request_may_be_one(open_gateway):
    async with open_gateway() as gateway:
        use(gateway, experiment(unit="key", deal=HALVES))
        assert len(set(await of_users(gateway))) == 1
        use(gateway, experiment(unit="request", deal=HALVES))
        found = Counter(await of_users(gateway))
    assert set(found) == {("faster", "control"), ("faster", "new")}


async def test_who_is_held_out_is_told_and_served_as_if_there_were_no_experiment(open_gateway):
    async with open_gateway() as gateway, FakeEngine(gateway.redis_url, gateway.layer, script=words("Hi")):
        use(gateway, experiment(holdout=5000))
        found = await of_users(gateway)
        outside = found.index(("faster", "holdout"))
        gateway.runtime.table._table = table(experiment(holdout=5000), deployed=False)
        await heard(gateway)
        answer = await gateway.client.post("/v1/completions", {**BODY, "user": f"u{outside}"})
        (record,) = await records(gateway, 1)
    assert abs(Counter(found)["faster", "holdout"] - USERS / 2) < FIVE_SIGMA
    assert answer.headers["x-mmserve-model"] == "acme/echo@1"
    assert record.assignments == {"faster": "holdout"}


async def test_experiments_of_one_exclusion_group_never_share_a_unit(open_gateway):
    members = [
        experiment(
            id=number, name=name, salt=number, group=Group(unit="user", salt=9, low=low, high=low + 5000)
        )
        for number, name, low in ((1, "size", 0), (2, "tone", 5000))
    ]
    async with open_gateway() as gateway:
        use(gateway, members[0])
        alone = await of_users(gateway)
        use(gateway, *members)
        both = await of_users(gateway)
    assert [one for one in both if one[0] == "size"] == [one for one in alone if one[0]]
    assert {name for name, _ in both} == {"size", "tone"}  # the two have the whole group


async def test_a_new_share_moves_only_who_must_move(open_gateway):
    async with open_gateway() as gateway:
        use(gateway, experiment(deal=HALVES))
        before = await of_users(gateway)
        use(gateway, experiment(deal=deal(HALVES, {1: 3000, 2: 7000})))
        after = await of_users(gateway)
    went = Counter((old[1], new[1]) for old, new in zip(before, after, strict=True) if old != new)
    assert set(went) == {("control", "new")}
    assert abs(went["control", "new"] - USERS / 5) < FIVE_SIGMA


async def test_a_team_and_an_endpoint_are_what_filters_look_at(open_gateway):
    wanted = {"endpoint": frozenset({"chat.completions"})}
    async with open_gateway() as gateway:
        use(gateway, experiment(filters=wanted))
        assert await arm(gateway, **CHAT, user="ada") == ("faster", "new")
        assert await arm(gateway, user="ada") == ("", "")
        use(gateway, experiment(filters={"team": frozenset({"search"})}))
        assert await arm(gateway, user="ada") == ("", "")  # its key has no team
