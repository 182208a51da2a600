"""A request in an experiment: its arm first, then whoever the route has, as it was when it was decided."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.core.assigner import decide_in_experiments
from routing.core.assignment import BUCKETS, ArmEntry, ExperimentEntry
from routing.core.chain import CHAIN, may_go_on
from routing.core.decision import DeploymentLoad, RequestFacts, decide
from routing.core.route import Policy, Wishes
from tests.unit.routing.worlds import Option, loads_of, option, table_of, worlds


def experiment(served_id: str) -> ExperimentEntry:
    """Everybody is in its one arm."""
    return ExperimentEntry(
        id=1, name="speed", targets=("r",), unit="key", salt=7, phase=1,
        arms=(ArmEntry(id=1, name="new", served_id=served_id),), deal=((0, 1), (BUCKETS, None)),
    )  # fmt: skip


def request(**more: object) -> RequestFacts:
    return RequestFacts(decision_id="d", model="r", key="k", **more)


@given(worlds(), st.sampled_from(Policy), st.booleans())
def test_the_chain_is_the_arms_and_then_the_routes_each_once(
    world: list[Option], policy: Policy, no_fallback: bool
) -> None:
    asked = request(wishes=Wishes(no_fallback=no_fallback))
    arm = world[-1]
    table = table_of(world, policy, experiments=[experiment(arm.served_id)])
    found = decide_in_experiments(table, loads_of(world), asked)

    own = decide(table_of([arm], policy), loads_of([arm]), asked).chain
    route = decide(table_of(world, policy), loads_of(world), asked).chain
    first = [link.id for link in own]
    rest = [] if own and no_fallback else [link.id for link in route if link.id not in first]
    assert [link.id for link in found.chain] == [*first, *rest][:CHAIN]
    assert [one.arm for one in found.assignments] == ["new"]
    assert found.chosen == (found.chain[0].id if found.chain else None)
    if not may_go_on(found.chain):
        assert len(found.chain) < 2


def test_what_comes_after_the_arm_is_chosen_among_those_who_could_serve_when_it_was_decided() -> None:
    world = [option("a"), option("b", running=5), option("c", running=1)]
    table = table_of(world, Policy.LEAST_LOADED, experiments=[experiment("a@1")])
    live = table.columns(loads_of(world))
    found = decide_in_experiments(table, live, request())
    live.note("c", None)
    live.note("b", DeploymentLoad(ready=1, max_streams=10))
    live.set_breaker("b", True)
    assert may_go_on(found.chain)
    assert [link.id for link in found.chain] == ["a", "c", "b"]
    assert [link.id for link in found.explained().chain] == ["a", "c", "b"]
    assert [link.id for link in found.chain[1:]] == ["c", "b"]
