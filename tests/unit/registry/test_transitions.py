"""The written state machine of versions."""

from registry.actions import TRANSITIONS
from registry.models import VersionState


def test_every_state_says_what_follows_it() -> None:
    assert set(TRANSITIONS) == set(VersionState)


def test_every_state_can_be_reached_and_none_leads_back_to_registered() -> None:
    reachable = set().union(*TRANSITIONS.values())

    assert reachable == set(VersionState) - {VersionState.REGISTERED}


def test_a_ready_version_is_never_fetched_again() -> None:
    assert TRANSITIONS[VersionState.READY] == {VersionState.ARCHIVED}
