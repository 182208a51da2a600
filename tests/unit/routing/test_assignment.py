"""Units and arms: sticky, in the shares that were asked for, independent, and moved as little as can be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.core import assignment
from routing.core.assignment import (
    BUCKETS,
    HOLDOUT,
    ArmEntry,
    Assignment,
    Deal,
    ExperimentEntry,
    Experiments,
    Group,
    Subject,
    counts,
    deal,
    exposed,
    free_slice,
    mix,
    moved,
    sample_rank,
    unit_hash,
)

USERS = 10_000
# Of 10,000 users a share of a half strays by 50 (one standard deviation): five of them are no accident.
FIVE_SIGMA = 5 * 50
HALVES = deal((), {1: 5000, 2: 5000})


def experiment(**fields: Any) -> ExperimentEntry:
    arms = (ArmEntry(id=1, name="control", served_id="m@1"), ArmEntry(id=2, name="new", served_id="m@2"))
    given: dict[str, Any] = {
        "id": 7, "name": "speed", "targets": ("m",), "unit": "user", "salt": mix(7), "phase": 1, "arms": arms,
        "deal": HALVES,
    }  # fmt: skip
    return ExperimentEntry(**(given | fields))


def everyone(*entries: ExperimentEntry, users: int = USERS) -> list[Assignment | None]:
    running = Experiments(entries)
    return [running.assign("m", Subject(request="r", user=f"u{number}")) for number in range(users)]


def arms_of(*entries: ExperimentEntry) -> list[tuple[int, int] | None]:
    found = everyone(*entries)
    return [None if one is None else (one.experiment, one.arm) for one in found]


def test_a_unit_keeps_its_arm_whatever_else_is_told_of_the_request() -> None:
    running = Experiments([experiment()])
    first = running.assign("m", Subject(request="a", user="ada", key="k1"))
    again = running.assign("m", Subject(request="b", user="ada", key="k2", session="s", endpoint="chat"))
    assert first is not None
    assert first == again


def test_the_shares_are_met_within_sampling_error() -> None:
    found = Counter(arms_of(experiment(deal=deal((), {1: 7500, 2: 500}))))
    assert abs(found[7, 1] - 0.75 * USERS) < FIVE_SIGMA
    assert abs(found[7, 2] - 0.05 * USERS) < FIVE_SIGMA
    assert abs(found[None] - 0.2 * USERS) < FIVE_SIGMA


def test_two_experiments_divide_the_units_independently() -> None:
    one = arms_of(experiment())
    other = arms_of(experiment(id=8, salt=mix(8)))
    both = sum(1 for a, b in zip(one, other, strict=True) if a[1] == b[1] == 1)  # type: ignore[index]
    assert abs(both - USERS / 4) < FIVE_SIGMA


def test_a_request_that_does_not_name_the_unit_is_in_no_experiment() -> None:
    assert Experiments([experiment()]).assign("m", Subject(request="r", key="k")) is None
    assert Experiments([experiment(unit="request")]).assign("m", Subject(request="r")) is not None


def test_filters_are_all_met_or_the_experiment_is_not_for_this_request() -> None:
    entry = experiment(filters={"team": frozenset({"search", "ads"}), "tags": frozenset({"tier=gold"})})
    running = Experiments([entry])
    gold = frozenset({"tier=gold", "other"})
    assert running.assign("m", Subject(request="r", user="ada", team="ads", tags=gold)) is not None
    assert running.assign("m", Subject(request="r", user="ada", team="ads")) is None
    assert running.assign("m", Subject(request="r", user="ada", team="hr", tags=gold)) is None


def test_what_is_remembered_of_units_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [experiment(id=1, filters={"team": frozenset({"ads"})}), experiment(id=2, salt=mix(8))]
    subjects = [
        Subject(request=f"r{number}", user=f"u{number % 50}", team=("ads", "hr")[number % 2])
        for number in range(200)
    ]
    fresh = [Experiments(entries).assign("m", one) for one in subjects]
    for most in (4096, 10):
        monkeypatch.setattr(assignment, "MOST_REMEMBERED", most)
        running = Experiments(entries)
        assert [running.assign("m", one) for one in subjects] == fresh
        (line,) = running._split.values()
        assert len(line._remembered) == min(most, 50)


def test_experiments_of_one_exclusion_group_never_share_a_unit() -> None:
    def group(low: int, high: int) -> Group:
        return Group(unit="user", salt=99, low=low, high=high)

    first = experiment(id=1, salt=mix(1), group=group(0, 4000))
    second = experiment(id=2, salt=mix(2), group=group(4000, 7000))
    alone = [arms_of(first), arms_of(second)]
    assert not any(a and b for a, b in zip(*alone, strict=True))
    together = Counter(one and one[0] for one in arms_of(first, second))
    assert abs(together[1] - 0.4 * USERS) < FIVE_SIGMA
    assert abs(together[2] - 0.3 * USERS) < FIVE_SIGMA
    # The arm inside the slice is drawn anew: the group's layer says nothing about it.
    in_control = sum(1 for one in alone[0] if one == (1, 1))
    assert abs(in_control - 0.2 * USERS) < FIVE_SIGMA


def test_the_holdout_is_told_and_served_as_if_there_were_no_experiment() -> None:
    found = everyone(experiment(holdout=1000), users=2000)
    kept_out = [one for one in found if one is not None and one.arm == HOLDOUT]
    assert all(one.served_id is None for one in kept_out)
    assert 130 < len(kept_out) < 270


def test_clusters_and_samples_know_nothing_of_the_arm() -> None:
    treated = [one for one in everyone(experiment()) if one is not None and one.arm == 2]
    assert abs(sum(1 for one in treated if one.unit % 1024 < 512) - len(treated) / 2) < FIVE_SIGMA
    assert abs(sum(1 for one in treated if sample_rank(one.unit) < 2**63) - len(treated) / 2) < FIVE_SIGMA


def test_a_key_and_a_user_of_one_name_are_different_units() -> None:
    assert unit_hash("key", "ada") != unit_hash("user", "ada")


def shares() -> st.SearchStrategy[dict[int, int]]:
    weights = st.lists(st.integers(0, 100), min_size=1, max_size=5)
    return weights.map(
        lambda found: {arm + 1: 100 * w // max(1, sum(found)) * 100 for arm, w in enumerate(found)}
    )


@given(st.lists(shares(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_a_new_deal_has_the_shares_asked_for_and_moves_the_least_that_can_be_moved(
    wanted: list[dict[int, int]],
) -> None:
    dealt: Deal = ()
    for number, one in enumerate(wanted):
        before = counts(dealt)
        after = deal(dealt, one)
        assert counts(after) == {arm: share for arm, share in one.items() if share}
        if number:
            nobodys = [BUCKETS - sum(before.values()), BUCKETS - sum(one.values())]
            differences = [abs(before.get(arm, 0) - one.get(arm, 0)) for arm in {*before, *one}]
            # No deal can move less: every bucket that moves mends one surplus and one lack.
            assert moved(dealt, after) == (sum(differences) + abs(nobodys[0] - nobodys[1])) // 2
        dealt = after


def test_a_ramp_moves_no_unit_from_one_arm_to_another() -> None:
    dealt: Deal = ()
    owner: dict[int, int] = {}
    for step in (1, 5, 10, 25, 50):
        dealt = deal(dealt, exposed({1: 50, 2: 50}, step / 50))
        for number, found in enumerate(everyone(experiment(deal=dealt), users=2000)):
            if found is not None:
                assert owner.setdefault(number, found.arm) == found.arm
    assert len(owner) == 2000


def test_a_slice_of_a_group_is_taken_where_there_is_room() -> None:
    assert free_slice([], 3000) == (0, 3000)
    assert free_slice([(0, 2000), (5000, 10_000)], 3000) == (2000, 5000)
    assert free_slice([(0, 2000), (5000, 9000)], 3500) is None
