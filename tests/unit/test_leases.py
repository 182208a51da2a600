"""Leases of nodes by the observer's clock."""

from __future__ import annotations

import datetime

from inference.leases import NodeLeases

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
A_SECOND = datetime.timedelta(seconds=1)


def watch(leases: NodeLeases, reports: dict[int, datetime.datetime], since: float, until: float) -> set[int]:
    """Look each second; what was lost at the end."""
    lost: set[int] = set()
    for now in range(int(since), int(until) + 1):
        lost = leases.lost(reports, float(now))
    return lost


def test_a_node_whose_report_stays_the_same_for_a_lease_is_lost_whatever_its_clock_says() -> None:
    leases = NodeLeases(10.0)
    assert watch(leases, {1: LONG_AGO}, 100, 110) == set()
    assert leases.lost({1: LONG_AGO}, 110.5) == {1}


def test_a_report_renews_the_lease() -> None:
    leases = NodeLeases(10.0)
    watch(leases, {1: LONG_AGO, 2: LONG_AGO}, 100, 108)
    assert watch(leases, {1: LONG_AGO + A_SECOND, 2: LONG_AGO}, 109, 115) == {2}
    assert leases.lost({1: LONG_AGO + 2 * A_SECOND, 2: LONG_AGO + A_SECOND}, 116) == set(), "it is back"


def test_an_observer_that_was_away_gives_everybody_a_whole_lease() -> None:
    leases = NodeLeases(10.0)
    watch(leases, {1: LONG_AGO}, 100, 105)
    assert leases.lost({1: LONG_AGO}, 170) == set()
    assert watch(leases, {1: LONG_AGO}, 171, 180) == set()
    assert leases.lost({1: LONG_AGO}, 180.5) == {1}
