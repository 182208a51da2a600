"""Experiments from a draft to the shipped winner: actions, settling, the watch, REST, commands."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mmserve.errors import Conflict, InvalidRequest
from registry.actions import archive_version, promote, register_model
from registry.models import Event, ModelVersion
from routing.actions import experiments as actions
from routing.core.assignment import Experiments, Subject, moved
from routing.core.records import UsageRecord
from routing.experiments.report import report_of
from routing.experiments.settle import settle
from routing.experiments.table import experiment_entries
from routing.models import Route
from routing.models.experiments import Experiment, Exposure, State
from tests.integration.api.conftest import make_ready

REQUESTS = 1500


@pytest.fixture
def versions(source: str, db: None) -> list[ModelVersion]:
    """``acme/echo@1`` is what its default alias means; ``@2`` is the candidate."""
    model = register_model("acme/echo", actor="tests")
    found = [make_ready(model, "1", source), make_ready(model, "2", source)]
    promote(found[0], actor="tests")
    return found


def arms(versions: list[ModelVersion], *weights: int) -> list[dict[str, Any]]:
    shares = weights or (50, 50)
    return [
        {"name": "control", "version": versions[0], "weight": shares[0], "is_control": True},
        {"name": "new", "version": versions[1], "weight": shares[1]},
    ]


@pytest.fixture
def draft(versions: list[ModelVersion]) -> Experiment:
    row = actions.create_experiment(
        "faster",
        arms(versions),
        actor="tests",
        target="acme/echo",
        smallest_effect=0.2,
        guardrails=[{"metric": "error_rate", "limit": 0.5}],
    )
    row.salt = 1  # the same arms in every run
    row.save(update_fields=["salt"])
    return row


def assignment(user: str) -> Any:
    return Experiments(experiment_entries()).assign("acme/echo", Subject(request="r", user=user))


def traffic(
    count: int,
    *,
    first: int = 0,
    seconds: tuple[float, float] = (1.0, 1.0),
    errors: tuple[float, float] = (0.02, 0.02),
) -> list[UsageRecord]:
    """Requests of as many users, from the ``first`` one on, each assigned as the gateway would."""
    rng = random.Random(7)
    running = Experiments(experiment_entries())
    found = []
    for number in range(first, first + count):
        one = running.assign("acme/echo", Subject(request="r", user=f"u{number}"))
        if one is None:
            continue
        new = one.arm_name == "new"
        failed = rng.random() < errors[new]
        record = UsageRecord(
            request_id=f"{number:024x}", key="k", model="acme/echo", served_id=one.served_id or "acme/echo@1",
            deployment="d", endpoint="completions", outcome="engine_lost" if failed else "completed",
            status=503 if failed else 200, at=1_790_000_000.0 + number, stream=False, completion_tokens=20,
            ttft_s=0.1, tpot_s=0.01, e2e_s=rng.expovariate(1 / seconds[new]), cost_nano=5000,
            assignments={one.experiment_name: one.arm_name},
            units={one.experiment_name: f"{one.phase}.{one.unit:016x}"},
        )  # fmt: skip
        found.append(record)
    return found


def kinds(row: Experiment) -> list[str]:
    return list(Event.objects.filter(subject=row.subject).order_by("id").values_list("kind", flat=True))


def test_a_ramp_exposes_step_by_step_and_moves_nobody_from_arm_to_arm(draft: Experiment) -> None:
    assert assignment("ada") is None
    actions.start_experiment(draft, actor="tests")
    exposed, owners = [], {}
    while True:
        found = {user: one for user in range(300) if (one := assignment(f"u{user}")) is not None}
        for user, one in found.items():
            assert owners.setdefault(user, one.arm_name) == one.arm_name
        exposed.append(draft.exposure)
        if draft.state != State.RAMPING:
            break
        actions.ramp_experiment(draft, actor="tests")
    assert exposed == [0.02, 0.1, 0.2, 0.5, 1.0]
    assert len(found) == 300
    assert draft.state == State.RUNNING
    assert kinds(draft) == ["experiment.created", "experiment.started", *["experiment.ramped"] * 4]


def test_what_was_measured_is_reported_and_the_winner_shipped(draft: Experiment, versions: Any) -> None:
    draft.ramp = []
    actions.start_experiment(draft, actor="tests")
    assert settle(traffic(REQUESTS, seconds=(1.0, 0.4))) == REQUESTS
    report = report_of(draft)
    assert report.verdict == "better"
    assert report.leader == "new"
    assert report.distinct_units == REQUESTS
    assert sum(one.requests for one in report.arms) == REQUESTS
    assert not report.mismatch.broken
    compared = report.comparisons["new"]["e2e"]
    assert compared.high is not None
    assert compared.high < 0
    assert compared.chance_better is not None
    assert compared.chance_better > 0.99
    actions.ship_experiment(draft, winner="new", actor="tests")
    model = versions[0].model
    assert model.aliases.get(is_default=True).version == versions[1]
    event = Event.objects.get(kind="experiment.shipped")
    assert event.data["primary"]["new"]["high"] < 0
    assert event.data["requests"]["new"] > 0
    assert assignment("ada") is None
    with pytest.raises(Conflict, match="shipped"):
        actions.pause_experiment(draft, actor="tests")


def test_equal_arms_of_even_traffic_prove_nothing(draft: Experiment) -> None:
    draft.ramp = []
    actions.start_experiment(draft, actor="tests")
    settle(traffic(REQUESTS))
    report = report_of(draft)
    compared = report.comparisons["new"]["e2e"]
    assert report.verdict in ("open", "same")
    assert compared.low is not None
    assert compared.high is not None
    assert compared.low < 0 < compared.high
    assert report.days_left is not None
    assert not report.broken


def test_a_batch_of_records_is_added_to_the_one_before(draft: Experiment) -> None:
    draft.ramp = []
    actions.start_experiment(draft, actor="tests")
    records = traffic(400)
    for begin in range(0, 400, 100):
        settle(records[begin : begin + 100])
    report = report_of(draft)
    assert sum(one.requests for one in report.arms) == 400
    assert Exposure.objects.count() == 400


def test_after_a_fallback_the_unit_counts_for_its_arm(draft: Experiment) -> None:
    draft.ramp = []
    actions.start_experiment(draft, actor="tests")
    record = next(one for one in traffic(50) if one.assignments == {"faster": "new"})
    record.served_id = "acme/echo@1"
    settle([record])
    exposure = Exposure.objects.get()
    assert (exposure.arm, exposure.served_id) == ("new", "acme/echo@1")
    assert {one.arm.name: one.requests for one in report_of(draft).arms} == {"control": 0, "new": 1}


def test_a_new_share_moves_the_fewest_units_and_measures_anew(draft: Experiment) -> None:
    draft.ramp = []
    actions.start_experiment(draft, actor="tests")
    settle(traffic(200))
    before = tuple((first, arm) for first, arm in draft.deal)
    actions.change_shares(draft, {"control": 60, "new": 40}, actor="tests")
    after = tuple((first, arm) for first, arm in draft.deal)
    assert moved(before, after) == 1000
    assert draft.phase == 2
    assert sum(one.requests for one in report_of(draft).arms) == 0
    settle(traffic(200))
    assert sum(one.requests for one in report_of(draft).arms) == 200


def test_a_ramp_never_shrinks_when_the_shares_have_changed_in_between(draft: Experiment) -> None:
    actions.update_experiment(draft, actor="tests", ramp=[10, 15, 20])
    actions.start_experiment(draft, actor="tests")
    assert draft.exposure == pytest.approx(0.2)
    actions.change_shares(draft, {"control": 10, "new": 90}, actor="tests")
    exposed = [draft.exposure]
    while draft.state == State.RAMPING:
        actions.ramp_experiment(draft, actor="tests")
        exposed.append(draft.exposure)
    assert exposed == pytest.approx([0.2, 20 / 90, 1.0])


def test_a_paused_experiment_assigns_nobody_and_goes_on_with_the_same_arms(draft: Experiment) -> None:
    actions.start_experiment(draft, actor="tests")
    for _ in range(4):
        actions.ramp_experiment(draft, actor="tests")
    before = assignment("ada").arm_name
    actions.pause_experiment(draft, actor="tests", reason="a holiday")
    assert assignment("ada") is None
    actions.resume_experiment(draft, actor="tests")
    assert draft.state == State.RUNNING
    assert assignment("ada").arm_name == before


def test_nothing_that_the_judgement_depends_on_changes_while_it_runs(draft: Experiment) -> None:
    actions.start_experiment(draft, actor="tests")
    for field, value in (
        ("primary_metric", "ttft"),
        ("alpha", 0.2),
        ("smallest_effect", 0.5),
        ("guardrails", []),
    ):
        with pytest.raises(Conflict, match=field):
            actions.update_experiment(draft, actor="tests", **{field: value})
        draft.refresh_from_db()
    actions.update_experiment(draft, actor="tests", hypothesis="smaller is faster")
    with pytest.raises(Conflict, match="roll it back"):
        actions.delete_experiment(draft, actor="tests")


def test_two_experiments_on_one_target_need_an_exclusion_group(draft: Experiment, versions: Any) -> None:
    group = actions.create_group("echo", "user", actor="tests")
    actions.update_experiment(draft, actor="tests", group=group, group_percent=60)
    actions.start_experiment(draft, actor="tests")
    fields: dict[str, Any] = {"target": "acme/echo@production", "actor": "tests", "ramp": []}
    lonely = actions.create_experiment("lonely", arms(versions), **fields)
    with pytest.raises(Conflict, match="exclusion group"):
        actions.start_experiment(lonely, actor="tests")
    large = actions.create_experiment("large", arms(versions), group=group, group_percent=50, **fields)
    with pytest.raises(Conflict, match="60%"):
        actions.start_experiment(large, actor="tests")
    small = actions.create_experiment("small", arms(versions), group=group, group_percent=40, **fields)
    actions.start_experiment(small, actor="tests")
    assert (small.group_low, small.group_high) == (6000, 10_000)
    apart = actions.create_experiment("apart", arms(versions), filters={"team": ["a"]}, **fields)
    with pytest.raises(Conflict):
        actions.start_experiment(apart, actor="tests")


def test_filters_that_no_request_meets_both_of_need_no_group(draft: Experiment, versions: Any) -> None:
    actions.update_experiment(draft, actor="tests", filters={"team": ["a", "b"]})
    actions.start_experiment(draft, actor="tests")
    fields: dict[str, Any] = {"target": "acme/echo", "actor": "tests"}
    other = actions.create_experiment("other", arms(versions), filters={"team": ["c"]}, **fields)
    actions.start_experiment(other, actor="tests")
    assert len(experiment_entries()) == 2


def test_a_draft_that_cannot_be_is_refused_by_its_field(versions: Any) -> None:
    for field, value in (
        ("target", "acme/echo@1"),
        ("target", "nobody"),
        ("primary_metric", "ttft_p95"),
        ("primary_metric", "happiness"),
        ("guardrails", [{"metric": "ttft_p95", "limit": -1}]),
        ("ramp", [10, 5]),
        ("filters", {"colour": ["red"]}),
    ):
        fields = {"target": "acme/echo", field: value}
        with pytest.raises(InvalidRequest) as refused:
            actions.create_experiment("bad", arms(versions), actor="tests", **fields)
        assert refused.value.param == field
    one = actions.create_experiment("one-armed", arms(versions)[:1], actor="tests", target="acme/echo")
    with pytest.raises(Conflict, match="two arms"):
        actions.start_experiment(one, actor="tests")


def test_the_second_of_two_who_change_it_at_once_is_told(draft: Experiment) -> None:
    other = Experiment.objects.get(pk=draft.pk)
    actions.start_experiment(draft, actor="tests")
    with pytest.raises(Conflict, match="somebody else|Somebody else|not a draft|ramping"):
        actions.update_experiment(other, actor="tests", alpha=0.01)


def test_a_version_of_an_open_experiment_is_not_retired(draft: Experiment, versions: Any) -> None:
    actions.start_experiment(draft, actor="tests")
    with pytest.raises(Conflict, match="the arm new of faster"):
        archive_version(versions[1], actor="tests")
    actions.roll_back_experiment(draft, actor="tests")
    archive_version(versions[1], actor="tests")


def test_a_shadow_changes_nobodys_version_and_is_compared_in_pairs(draft: Experiment) -> None:
    actions.update_experiment(draft, actor="tests", kind="shadow", shadow_percent=50)
    actions.start_experiment(draft, actor="tests")
    assert draft.state == State.RUNNING
    running = Experiments(experiment_entries())
    assert assignment("ada") is None
    copied = [running.mirror("acme/echo", Subject(request="r", user=f"u{n}")) for n in range(1000)]
    assert {one.arm_name for one in copied if one} == {"new"}
    assert 400 < sum(one is not None for one in copied) < 600
    rng = random.Random(5)
    records = []
    for one in filter(None, copied):
        seconds = rng.lognormvariate(0, 1)
        for arm, factor in ((one.control, 1.0), (one.arm_name, 0.7 + rng.random() / 10)):
            record = traffic_record(f"{len(records):024x}", seconds * factor)
            record.assignments, record.units = {"faster": arm}, {"faster": f"{one.phase}.{one.unit:016x}"}
            records.append(record)
    settle(records)
    report = report_of(draft)
    assert report.verdict == "better"
    assert not report.mismatch.broken
    with pytest.raises(Conflict, match="ramping"):
        actions.ramp_experiment(draft, actor="tests")


def traffic_record(request_id: str, e2e_s: float) -> UsageRecord:
    return UsageRecord(
        request_id=request_id, key="k", model="acme/echo", served_id="acme/echo@1", deployment="d",
        endpoint="completions", outcome="completed", status=200, at=1_790_000_000.0, stream=False,
        completion_tokens=20, e2e_s=e2e_s,
    )  # fmt: skip


def test_a_route_may_be_the_target_and_shipping_names_the_alias(versions: Any) -> None:
    Route.objects.create(name="assistant")
    row = actions.create_experiment("routed", arms(versions), actor="tests", target="assistant", ramp=[])
    actions.start_experiment(row, actor="tests")
    running = Experiments(experiment_entries())
    assert running.assign("assistant", Subject(request="r", user="ada")) is not None
    assert running.assign("acme/echo", Subject(request="r", user="ada")) is None
    with pytest.raises(InvalidRequest) as refused:
        actions.ship_experiment(row, winner="new", actor="tests")
    assert refused.value.param == "alias"
    actions.ship_experiment(row, winner="new", alias="acme/echo", actor="tests")
    assert versions[0].model.aliases.get(is_default=True).version == versions[1]
