"""Experiments and feedback over REST and on the admin's page."""

from __future__ import annotations

import datetime
import importlib
import random
import time
from typing import Any

import pytest
import redis
from django.apps import apps
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from mmserve.errors import Conflict
from mmserve.models import AccessKey
from registry.actions import promote, register_model
from routing.actions import experiments as actions
from routing.core.records import UsageRecord, shadow_key
from routing.core.statistics import metrics as m
from routing.core.statistics.metrics import METRICS
from routing.core.statistics.totals import Totals
from routing.experiments import settle as settle_module
from routing.experiments.report import report_of
from routing.experiments.settle import PENDING_KEPT, forget, join_feedback, settle
from routing.experiments.watch import EVERY_S, ExperimentWatch
from routing.models.experiments import ArmTotals, Experiment, Exposure, Feedback, State
from routing.models.usage import UsageHour
from tests.integration.api.conftest import make_ready
from tests.integration.api.test_experiments import REQUESTS, assignment, draft, kinds, traffic, versions

__all__ = ["draft", "versions"]  # fixtures

URL = "/v1/routing/experiments"
BODY: dict[str, Any] = {
    "name": "faster",
    "target": "acme/echo",
    "unit": "user",
    "primary_metric": "e2e",
    "smallest_effect": 0.1,
    "guardrails": [{"metric": "ttft_p95", "limit": 0.1}],
    "ramp": [1, 10, 50],
    "arms": [
        {"name": "control", "version": "acme/echo@1", "weight": 50, "is_control": True},
        {"name": "new", "version": "acme/echo@2", "weight": 50},
    ],
}


def running(row: Experiment) -> Experiment:
    row.ramp = []
    return actions.start_experiment(row, actor="tests")


def test_an_experiment_lives_over_rest_from_draft_to_shipped(manager: APIClient, versions: Any) -> None:
    made = manager.post(URL, BODY, format="json")
    assert made.status_code == 201, made.json()
    url = f"{URL}/{made.json()['id']}"
    assert made.json()["state"] == "draft"
    assert [arm["version"] for arm in made.json()["arms"]] == ["acme/echo@1", "acme/echo@2"]
    assert manager.patch(url, {"alpha": 0.01}, format="json").json()["alpha"] == 0.01
    assert manager.post(f"{url}/start", {"reason": "go"}, format="json").json()["state"] == "ramping"
    assert manager.post(f"{url}/ramp", {}, format="json").json()["exposure"] == pytest.approx(0.2)
    assert manager.post(f"{url}/pause", {}, format="json").json()["state"] == "paused"
    assert manager.post(f"{url}/resume", {}, format="json").json()["state"] == "ramping"
    assert manager.post(f"{url}/shares", {"weights": {"new": 25}}, format="json").json()["phase"] == 2
    report = manager.get(f"{url}/report").json()
    assert report["verdict"] == "early"
    concluded = manager.post(f"{url}/conclude", {"winner": "new"}, format="json").json()
    assert (concluded["state"], concluded["winner"]) == ("concluded", "new")
    assert manager.post(f"{url}/ship", {}, format="json").json()["state"] == "shipped"
    assert manager.get("/v1/models/acme%2Fecho").json()["version"] == "2"
    found = [one["kind"] for one in manager.get(f"{url}/timeline").json()]
    assert found[0] == "experiment.shipped"
    assert found[-1] == "experiment.created"
    assert manager.delete(url).status_code == 204
    assert manager.get(url).status_code == 404


def test_what_is_wrong_is_named(manager: APIClient, reader: APIClient, versions: Any) -> None:
    for change, status, param in (
        ({"target": "acme/echo@1"}, 400, "target"),
        ({"primary_metric": "speed"}, 400, "primary_metric"),
        ({"guardrails": [{"metric": "ttft_p95"}]}, 400, "guardrails"),
        ({"name": "No Spaces"}, 400, "name"),
        ({"unit": "planet"}, 400, "unit"),
        ({"alpha": "0.05"}, 400, "alpha"),
        ({"filters": {"team": ["\x00"]}}, 400, "filters"),
        ({"filters": {"endpoint": ["chat"]}}, 400, "filters"),
        ({"filters": {"language": ["de-AT"]}}, 400, "filters"),
        ({"filters": {"tags": ["gold"]}}, 400, "filters"),
        ({"kind": "shadow", "holdout_percent": 5}, 400, "kind"),
        ({"colour": "red"}, 400, "colour"),
        ({"arms": [{"name": "a", "version": "nobody@1"}]}, 400, "arms"),
    ):
        answer = manager.post(URL, {**BODY, **change}, format="json")
        assert answer.status_code == status, (change, answer.json())
        assert answer.json()["error"]["param"].startswith(param), answer.json()
    assert reader.get(URL).status_code == 403
    assert manager.post(f"{URL}/999/start", {}, format="json").status_code == 404
    manager.post(URL, BODY, format="json")
    assert manager.post(URL, BODY, format="json").status_code == 409


def test_the_calculator_says_days_and_what_it_assumed(manager: APIClient, draft: Experiment) -> None:
    url = f"{URL}/{draft.pk}/plan"
    assert manager.get(url).json()["days"] is None
    asked = manager.get(url, {"baseline": 2.0, "deviation": 2.0, "requests_per_day": 1000}).json()
    # (3.03 + 0.84)² of information for an effect of 0.2 at a variance of 4, both arms alike.
    assert asked["observations"] == pytest.approx(15.0 * 4 * 4 / 0.4**2, rel=0.03)
    assert asked["observations_for_one_look"] == pytest.approx(7.849 * 4 * 4 / 0.4**2, rel=0.01)
    assert asked["days"] == pytest.approx(asked["observations"] / 1000)
    running(draft)
    settle(traffic(800))
    other = manager.post(URL, {**BODY, "name": "next"}, format="json").json()
    measured = manager.get(f"{URL}/{other['id']}/plan", {"requests_per_day": 1000}).json()
    assert measured["baseline"] == pytest.approx(1.0, rel=0.2)
    assert "faster" in measured["assumptions"][0]
    for wrong in ("-1", "nan", "inf", "much"):
        assert manager.get(url, {"baseline": wrong}).status_code == 400


def rate(client: APIClient, request_id: str, **body: Any) -> Any:
    return client.post("/v1/feedback", {"request_id": request_id, **body}, format="json")


def ratings(row: Experiment) -> tuple[float, float]:
    found = [Totals.from_bytes(bytes(one.data)) for one in ArmTotals.objects.filter(experiment=row)]
    return tuple(sum(float(one.sums[column].sum()) for one in found) for column in (m.RATINGS, m.RATING))  # type: ignore[return-value]


def test_feedback_counts_once_whether_it_comes_before_or_after_the_record(
    reader: APIClient, infer_key: tuple[AccessKey, str], draft: Experiment
) -> None:
    running(draft)
    records = traffic(10)
    for record in records:
        record.key = str(infer_key[0].pk)
    early, late = records[0], records[1]
    assert rate(reader, f"chatcmpl-{early.request_id}", rating=1).json()["in_experiment"] is False
    assert join_feedback() == 0
    settle(records)
    answer = rate(reader, late.request_id, rating=0.5).json()
    assert (answer["values"], answer["in_experiment"]) == ({"rating": 0.5}, True)
    assert join_feedback() == 2
    assert ratings(draft) == (2, 1.5)
    assert rate(reader, late.request_id, rating=0.5).status_code == 200  # the same again
    assert join_feedback() == 0
    assert rate(reader, late.request_id, rating=0).status_code == 200  # another mind
    assert join_feedback() == 1
    assert ratings(draft) == (2, 1.0)


def test_a_named_score_counts_in_the_experiment_that_reads_it(manager: APIClient, draft: Experiment) -> None:
    draft.score_name = "helpful"
    running(draft)
    records = traffic(100)
    settle(records)
    for record in records:
        rate(manager, record.request_id, scores={"helpful": 4.0, "other": 9.0})
    assert join_feedback() == 100
    report = report_of(draft)
    assert sum(one.totals.sums[m.SCORE].sum() for one in report.arms) == 400


def test_only_the_requests_own_key_judges_it(
    reader: APIClient, manager: APIClient, draft: Experiment
) -> None:
    running(draft)
    record = traffic(1)[0]
    settle([record])  # of another key
    answer = rate(reader, record.request_id, rating=1)
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "request_id"
    assert rate(manager, record.request_id, rating=1).status_code == 200


def test_feedback_that_cannot_be_is_refused_by_its_field(reader: APIClient, db: None) -> None:
    known = "0" * 24
    for request_id, body, status, param in (
        ("nonsense", {"rating": 1}, 404, "request_id"),
        (known, {}, 400, "rating"),
        (known, {"rating": 2}, 400, "rating"),
        (known, {"rating": "good"}, 400, "rating"),
        (known, {"rating": "nan"}, 400, "rating"),
        (known, {"scores": {"x": "nan"}}, 400, "scores"),
        (known, {"scores": {"rating": 1}}, 400, "scores"),
        (known, {"scores": {"x": "many"}}, 400, "scores"),
        (known, {"rating": 1, "colour": 1}, 400, "colour"),
    ):
        answer = rate(reader, request_id, **body)
        assert answer.status_code == status, (body, answer.json())
        assert answer.json()["error"]["param"].startswith(param)
    assert APIClient().post("/v1/feedback", {}, format="json").status_code == 401


def test_feedback_whose_request_never_comes_is_waited_for_a_day(reader: APIClient, db: None) -> None:
    rate(reader, "0" * 24, rating=1)
    forget()
    assert Feedback.objects.get().pending
    forget(timezone.now() + PENDING_KEPT + datetime.timedelta(minutes=1))
    assert not Feedback.objects.get().pending


def test_feedback_and_exposures_are_kept_for_so_long_and_no_more_than_so_many(
    manager: APIClient, draft: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(draft)
    records = traffic(60)
    settle(records)
    for record in records:
        rate(manager, record.request_id, rating=1)
    now = timezone.now()
    for age, record in enumerate(records):
        Feedback.objects.filter(request_id=record.request_id).update(
            at=now - datetime.timedelta(days=2 * age)
        )
        Exposure.objects.filter(pk=record.request_id).update(at=now - datetime.timedelta(days=2 * age))
    newest = [record.request_id for record in records]

    assert not forget(now)
    assert set(Feedback.objects.values_list("request_id", flat=True)) == set(newest[:45])
    assert set(Exposure.objects.values_list("request_id", flat=True)) == set(newest[:15])

    monkeypatch.setattr(settle_module, "MOST_FEEDBACK", 10)
    monkeypatch.setattr(settle_module, "MOST_EXPOSURES", 4)
    monkeypatch.setattr(settle_module, "MOST_FORGOTTEN", 20)
    watch = ExperimentWatch()
    watch.step(0.0)
    assert (Feedback.objects.count(), Exposure.objects.count()) == (25, 4)
    watch.step(EVERY_S)  # there was more to forget: it does not wait for an hour
    assert set(Feedback.objects.values_list("request_id", flat=True)) == set(newest[:10])
    assert set(Exposure.objects.values_list("request_id", flat=True)) == set(newest[:4])
    assert rate(manager, newest[50], rating=0.5).json()["in_experiment"] is False


def test_the_watch_ramps_what_lasted_and_kept_its_guardrails(draft: Experiment) -> None:
    draft.step_minutes, draft.step_requests = 30, 20
    draft.ramp = [25]
    actions.start_experiment(draft, actor="tests")
    watch = ExperimentWatch()
    settle(traffic(1000))
    watch.look()
    draft.refresh_from_db()
    assert draft.exposure == 0.5  # not half an hour yet
    watch.look(timezone.now() + datetime.timedelta(minutes=31))
    draft.refresh_from_db()
    assert (draft.state, draft.exposure) == (State.RUNNING, 1.0)
    assert kinds(draft)[-1] == "experiment.ramped"


def test_the_watch_waits_while_a_guardrail_is_over_its_limit(draft: Experiment) -> None:
    draft.ramp, draft.step_minutes, draft.step_requests = [25], 0, 20
    actions.start_experiment(draft, actor="tests")
    settle(traffic(600, errors=(0.05, 0.15)))
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.state == State.RAMPING


def test_the_watch_walks_the_whole_ramp_and_looks_at_the_guardrails_before_each_step(
    draft: Experiment,
) -> None:
    actions.update_experiment(draft, actor="tests", step_minutes=30, step_requests=1)
    actions.start_experiment(draft, actor="tests")
    watch, now, seen = ExperimentWatch(), timezone.now(), [draft.exposure]
    for step, users in enumerate((6000, 2000, 500, 500)):
        settle(traffic(users, first=10_000 * step))
        watch.look(now + datetime.timedelta(minutes=31))
        draft.refresh_from_db()
        seen.append(draft.exposure)
        Experiment.objects.update(step_at=now)
    assert seen == [0.02, 0.1, 0.2, 0.5, 1.0]
    assert draft.state == State.RUNNING
    for step in draft_events(draft)[-4:]:
        assert (step.kind, step.actor) == ("experiment.ramped", "controller")
        assert step.data["guardrails"][0]["metric"] == "error_rate"
        assert step.data["guardrails"][0]["state"] != "broken"
        assert step.data["to"] > step.data["from"]


def test_each_step_waits_for_its_own_requests_however_many_came_before(
    browser: Client, draft: Experiment
) -> None:
    actions.update_experiment(draft, actor="tests", step_minutes=0, step_requests=100)
    actions.start_experiment(draft, actor="tests")
    watch = ExperimentWatch()

    def after(users: int, first: int) -> float:
        settle(traffic(users, first=first, errors=(0.0, 0.0)))
        watch.look()
        watch.look()  # time alone takes no step
        draft.refresh_from_db()
        return draft.exposure

    assert after(3000, 0) == 0.02
    assert after(12_000, 10_000) == 0.1  # 100 of each arm at 2%
    assert after(1000, 30_000) == 0.1
    page = browser.get(f"/admin/routing/experiment/{draft.pk}/change/").content.decode()
    assert "of the 100 requests that a step needs of each arm." in page
    assert after(2000, 40_000) == 0.2
    assert after(500, 50_000) == 0.2
    step = draft_events(draft)[-1].data
    assert all(100 <= count < 200 for count in step["step_requests"].values())
    assert all(count > 200 for count in step["requests"].values())


def test_new_shares_and_a_pause_in_the_middle_of_a_ramp_still_need_the_steps_requests(
    draft: Experiment,
) -> None:
    none = (0.0, 0.0)
    actions.update_experiment(draft, actor="tests", step_minutes=0, step_requests=50, ramp=[10, 25])
    actions.start_experiment(draft, actor="tests")
    settle(traffic(1000, errors=none))
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.exposure == 0.5
    actions.change_shares(draft, {"control": 60, "new": 40}, actor="tests")
    settle(traffic(100, first=2000, errors=none))
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert (draft.state, draft.phase) == (State.RAMPING, 2)
    actions.pause_experiment(draft, actor="tests")
    actions.resume_experiment(draft, actor="tests")
    # What was counted at this exposure before the pause counts; it is the phase's first step.
    settle(traffic(300, first=3000, errors=none))
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.exposure == 0.625


def test_a_ramp_that_began_before_steps_were_counted_counts_from_the_migration_on(draft: Experiment) -> None:
    actions.update_experiment(draft, actor="tests", step_minutes=0, step_requests=50)
    actions.start_experiment(draft, actor="tests")
    settle(traffic(10_000, errors=(0.0, 0.0)))
    migration = importlib.import_module("routing.migrations.0008_requests_before_step")
    migration.count_from_now(apps, None)
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.exposure == 0.02
    settle(traffic(8000, first=20_000, errors=(0.0, 0.0)))
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.exposure == 0.1


def test_the_watch_rolls_back_on_a_broken_guardrail_with_the_numbers(draft: Experiment) -> None:
    actions.start_experiment(draft, actor="tests")
    for _ in range(4):
        actions.ramp_experiment(draft, actor="tests")
    settle(traffic(1500, errors=(0.02, 0.4)))
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.state == State.ROLLED_BACK
    assert "error_rate of new" in draft.state_reason
    event = draft_events(draft)[-1]
    assert event.actor == "controller"
    broken = [one for one in event.data["guardrails"] if one["state"] == "broken"]
    assert broken[0]["low"] > broken[0]["limit"]
    assert assignment("ada") is None


def test_the_watch_rolls_back_on_errors_where_the_control_has_none(
    manager: APIClient, draft: Experiment
) -> None:
    actions.update_experiment(draft, actor="tests", step_minutes=0, step_requests=1)
    actions.start_experiment(draft, actor="tests")
    settle(traffic(15_000, errors=(0.0, 0.4)))
    ExperimentWatch().look()
    shown = manager.get(f"{URL}/{draft.pk}").json()
    assert shown["state"] == "rolled_back"
    assert "error_rate of new" in shown["state_reason"]
    assert manager.get(f"{URL}/{draft.pk}/report").json()["guardrails"][0]["state"] == "broken"
    assert assignment("ada") is None


def test_the_watch_rolls_back_on_a_price_where_the_control_has_none(draft: Experiment) -> None:
    actions.update_experiment(draft, actor="tests", guardrails=[{"metric": "cost", "limit": 0.5}])
    running(draft)
    records = traffic(400)
    for record in records:
        record.cost_nano = 5000 * (record.assignments["faster"] == "new")
    settle(records)
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.state == State.ROLLED_BACK
    assert "cost of new" in draft.state_reason


def test_two_arms_without_an_error_or_a_price_go_up_the_whole_ramp(draft: Experiment) -> None:
    guardrails = [{"metric": name, "limit": 0.2} for name in ("error_rate", "refusals", "cost")]
    actions.update_experiment(draft, actor="tests", step_minutes=0, step_requests=1, guardrails=guardrails)
    actions.start_experiment(draft, actor="tests")
    watch, seen = ExperimentWatch(), [draft.exposure]
    for step, users in enumerate((8000, 2000, 1000, 500)):
        records = traffic(users, first=10_000 * step, errors=(0.0, 0.0))
        for record in records:
            record.cost_nano = 0
        settle(records)
        watch.look()
        draft.refresh_from_db()
        seen.append(draft.exposure)
    assert seen == [0.02, 0.1, 0.2, 0.5, 1.0]


def test_the_watch_rolls_back_on_a_sample_ratio_mismatch(draft: Experiment) -> None:
    running(draft)
    settle(lossy())
    ExperimentWatch().look()
    draft.refresh_from_db()
    assert draft.state == State.ROLLED_BACK
    assert "mismatch" in draft.state_reason


def lossy() -> list[UsageRecord]:
    """Something loses a third of the new arm's requests."""
    records = traffic(2000)
    return [one for n, one in enumerate(records) if one.assignments["faster"] == "control" or n % 3]


def test_a_mismatch_is_a_banner_on_the_page_and_keeps_a_person_from_the_next_step(
    browser: Client, draft: Experiment
) -> None:
    actions.update_experiment(draft, actor="tests", ramp=[50])
    actions.start_experiment(draft, actor="tests")
    Experiment.objects.update(state=State.RAMPING)
    settle(lossy())
    url = f"/admin/routing/experiment/{draft.pk}"
    page = browser.get(f"{url}/change/").content.decode()
    assert 'id="mismatch"' in page
    assert "Do not trust this" in page
    with pytest.raises(Conflict, match="do not have the units"):
        actions.ramp_experiment(Experiment.objects.get(), actor="tests")


def test_every_metric_is_reported_with_its_value(manager: APIClient, draft: Experiment) -> None:
    actions.update_experiment(draft, actor="tests", score_name="helpful")
    running(draft)
    dice, records = random.Random(3), traffic(REQUESTS, seconds=(1.0, 0.5), errors=(0.05, 0.1))
    for record in records:
        record.ttft_s, record.tpot_s = dice.uniform(0.1, 0.3), dice.uniform(0.01, 0.03)
        record.completion_tokens, record.refusal = dice.randrange(2, 90), dice.random() < 0.1
        record.cost_nano = dice.randrange(1000, 9000)
    settle(records)
    said: dict[str, tuple[float, float]] = {}
    for record in records[:400]:
        given = {"rating": dice.random(), "scores": {"helpful": dice.uniform(1, 5)}}
        assert rate(manager, record.request_id, **given).status_code == 200
        said[record.request_id] = (given["rating"], given["scores"]["helpful"])
    join_feedback()
    found = manager.get(f"{URL}/{draft.pk}/report").json()["comparisons"]["new"]
    shown = {one["metric"]: (one["control"], one["treatment"]) for one in found}

    for place, arm in enumerate(("control", "new")):
        of_arm = [one for one in records if one.assignments["faster"] == arm]
        good = [one for one in of_arm if one.outcome == "completed"]
        rated = [said[one.request_id] for one in of_arm if one.request_id in said]
        wanted = {
            "error_rate": 1 - len(good) / len(of_arm),
            "cost": sum(one.cost_nano for one in of_arm) / 1e9 / len(good),
            "output_tokens": sum(one.completion_tokens for one in good) / len(good),
            "refusals": sum(one.refusal for one in good) / len(good),
            "rating": sum(rating for rating, _ in rated) / len(rated),
            "score": sum(score for _, score in rated) / len(rated),
        }
        for name, values in (
            ("ttft", sorted(one.ttft_s for one in good)),
            ("tpot", sorted(one.tpot_s for one in good)),
            ("e2e", sorted(one.e2e_s for one in good)),
        ):
            wanted[name] = sum(values) / len(values)
            for percent in (50, 95, 99):
                wanted[f"{name}_p{percent}"] = values[len(values) * percent // 100]
        assert set(wanted) == set(METRICS) == set(shown)
        for name, value in wanted.items():
            # A quantile lies in a bin of 5%.
            close = 0.06 if "_p" in name else 1e-4
            assert shown[name][place] == pytest.approx(value, rel=close), (name, arm)


def test_the_watch_looks_again_only_at_what_has_changed(
    draft: Experiment, django_assert_max_num_queries: Any
) -> None:
    running(draft)
    settle(traffic(100))
    watch = ExperimentWatch()
    watch.look()
    with django_assert_max_num_queries(2):
        watch.look()


def draft_events(row: Experiment) -> list[Any]:
    from registry.models import Event

    return list(Event.objects.filter(subject=row.subject).order_by("id"))


@pytest.fixture
def browser(ada: Any) -> Client:
    client = Client()
    client.force_login(ada)
    return client


def test_the_page_of_every_state_opens(browser: Client, draft: Experiment) -> None:
    url = f"/admin/routing/experiment/{draft.pk}/change/"
    assert "How long it will take" in browser.get(url).content.decode()
    running(draft)
    assert "Too early to say" in browser.get(url).content.decode()
    settle(traffic(REQUESTS, seconds=(1.0, 0.4)))
    page = browser.get(url).content.decode()
    assert "new wins" in page
    assert "<svg" in page
    assert 'data-tone="good"' in page
    assert "error_rate 50%" in page  # as it was typed, not as it is stored
    assert "text-green-700" in browser.get("/admin/routing/experiment/").content.decode()
    actions.pause_experiment(draft, actor="tests")
    assert "Everybody gets what acme/echo@production means without it." in browser.get(url).content.decode()
    actions.resume_experiment(draft, actor="tests")
    actions.roll_back_experiment(draft, actor="tests", reason="it was a test")
    page = browser.get(url).content.decode()
    assert "Rolled back" in page
    assert "it was a test" in page
    assert f"{REQUESTS:,} requests; e2e of new -" in page  # the numbers of the event


def test_a_shadows_page_says_what_of_its_budget_is_spent(
    browser: Client, draft: Experiment, redis_url: str
) -> None:
    actions.update_experiment(draft, actor="tests", kind="shadow", shadow_tokens_per_day=20_000)
    actions.start_experiment(draft, actor="tests")
    client = redis.Redis.from_url(redis_url)
    client.set(shadow_key("faster", time.time()), 1234)
    client.close()
    page = browser.get(f"/admin/routing/experiment/{draft.pk}/change/").content.decode()
    assert "1,234 of 20,000 tokens are used today (UTC)." in page


def test_the_page_says_how_much_of_an_arm_another_version_served_and_what_the_target_means_meanwhile(
    browser: Client, draft: Experiment, versions: Any, source: str
) -> None:
    running(draft)
    url = f"/admin/routing/experiment/{draft.pk}/change/"
    records = [one for one in traffic(100) if one.assignments["faster"] == "new"]
    for record in records[: len(records) // 2]:
        record.served_id = "acme/echo@1"
    settle(records)
    page = browser.get(url).content.decode()
    assert f"{len(records) // 2 / len(records):.0%} served by another" in page
    assert 'id="strange"' not in page
    promote(make_ready(versions[0].model, "3", source), actor="tests")
    page = browser.get(url).content.decode()
    assert "acme/echo@production means acme/echo@3 now, which is no arm" in page


def test_an_experiment_that_was_concluded_says_who_won_and_what_is_left_to_do(
    browser: Client, draft: Experiment
) -> None:
    running(draft)
    settle(traffic(REQUESTS, seconds=(1.0, 0.4)))
    actions.conclude_experiment(draft, actor="tests", winner="new")
    page = browser.get(f"/admin/routing/experiment/{draft.pk}/change/").content.decode()
    assert "Concluded: new won" in page
    assert "ship the winner to move it" in page


def form(versions: Any, **changes: Any) -> dict[str, Any]:
    return {
        "name": "typed", "target": "acme/echo", "hypothesis": "", "unit": "user", "holdout_percent": 0,
        "filters": "team: search, ads", "primary_metric": "e2e", "smallest_effect": "0.05", "alpha": "0.05",
        "score_name": "", "guardrails": "error_rate 20%\r\nttft_p95 10%", "ramp": "1, 5, 50", "step_minutes": 60,
        "step_requests": 100, "kind": "split", "shadow_percent": 10, "shadow_tokens_per_day": 1000,
        "group": "", "group_percent": 100, "reason": "typed by a person",
        "arms-TOTAL_FORMS": 2, "arms-INITIAL_FORMS": 0, "arms-MIN_NUM_FORMS": 2, "arms-MAX_NUM_FORMS": 10,
        "arms-0-name": "control", "arms-0-version": versions[0].pk, "arms-0-weight": 50, "arms-0-is_control": "on",
        "arms-1-name": "new", "arms-1-version": versions[1].pk, "arms-1-weight": 50, **changes,
    }  # fmt: skip


def test_a_draft_is_typed_into_the_page(browser: Client, versions: Any) -> None:
    answer = browser.post("/admin/routing/experiment/add/", form(versions))
    assert answer.status_code == 302, answer.content.decode()[-3000:]
    row = Experiment.objects.get(name="typed")
    assert row.filters == {"team": ["search", "ads"]}
    assert row.guardrails == [{"metric": "error_rate", "limit": 0.2}, {"metric": "ttft_p95", "limit": 0.1}]
    assert row.ramp == [1, 5, 50]
    assert [(arm.name, arm.served_id, arm.is_control) for arm in row.arms.all()] == [
        ("control", "acme/echo@1", True),
        ("new", "acme/echo@2", False),
    ]
    wrong = browser.post("/admin/routing/experiment/add/", form(versions, name="other", target="acme/echo@1"))
    assert wrong.status_code == 200
    assert "who names it gets it" in wrong.content.decode()
    assert not Experiment.objects.filter(name="other").exists()


def test_the_buttons_act_and_ask_why(browser: Client, draft: Experiment, versions: Any) -> None:
    url = f"/admin/routing/experiment/{draft.pk}/change/"
    start = next(
        link
        for link in _links(browser.get(url).content.decode())
        if "start" in link and str(draft.pk) in link
    )
    assert browser.post(start, {"confirmed": "yes", "reason": "try it"}).status_code == 302
    draft.refresh_from_db()
    assert draft.state == State.RAMPING
    ship = next(link for link in _links(browser.get(url).content.decode()) if "ship" in link)
    assert "What is known: Too early" in browser.get(ship).content.decode()
    for button in ("start", "ship", "conclude", "shares"):
        assert browser.get(f"/admin/routing/experiment/nobody/{button}/").status_code == 404
    assert browser.post(ship, {"confirmed": "yes", "winner": "new", "reason": ""}).status_code == 302
    assert versions[0].model.aliases.get(is_default=True).version == versions[1]


def test_shares_are_changed_on_the_page_and_a_wrong_line_comes_back(
    browser: Client, draft: Experiment
) -> None:
    running(draft)
    url = f"/admin/routing/experiment/{draft.pk}/change/"
    shares = next(link for link in _links(browser.get(url).content.decode()) if "shares" in link)
    assert "control 50\nnew 50" in browser.get(shares).content.decode()
    for wrong, words in (("new", "is no line like"), ("nobody 5", "has no arm"), ("new -5", "greater than")):
        answer = browser.post(shares, {"confirmed": "yes", "weights": wrong, "reason": ""})
        assert answer.status_code == 200
        assert words in answer.content.decode(), wrong
    asked = {"confirmed": "yes", "weights": "control 60\r\nnew 40\r\n", "reason": "more care"}
    assert browser.post(shares, asked).status_code == 302
    draft.refresh_from_db()
    assert (draft.phase, draft.deal) == (
        2,
        [[0, draft.deal[0][1]], [5000, draft.deal[1][1]], [9000, draft.deal[0][1]]],
    )
    assert kinds(draft)[-1] == "experiment.shares"


def _links(page: str) -> list[str]:
    import re

    return re.findall(r'href="(/admin/routing/experiment/[^"]+)"', page)


def test_the_calculator_on_a_drafts_page_takes_what_is_typed(browser: Client, draft: Experiment) -> None:
    url = f"/admin/routing/experiment/{draft.pk}/change/"
    page = browser.get(url, {"baseline": "2", "deviation": "2", "requests_per_day": "1000"}).content.decode()
    assert "days</strong>" in page
    page = browser.get(url, {"baseline": "many"}).content.decode()
    assert "is no number above 0" in page


def test_traffic_is_what_the_usage_of_the_last_week_says(manager: APIClient, draft: Experiment) -> None:
    hour = timezone.now() - datetime.timedelta(hours=48)
    for back in range(48):
        UsageHour.objects.create(
            hour=hour + datetime.timedelta(hours=back),
            key="k",
            model="acme/echo",
            version="acme/echo@1",
            requests=50,
        )
    found = manager.get(f"{URL}/{draft.pk}/plan", {"baseline": 1.0}).json()
    assert found["requests_per_day"] == pytest.approx(1200, rel=0.05)
    assert found["days"] == pytest.approx(found["observations"] / found["requests_per_day"])


def test_a_step_that_has_not_lasted_yet_says_what_else_it_needs(browser: Client, draft: Experiment) -> None:
    actions.start_experiment(draft, actor="tests")
    page = browser.get(f"/admin/routing/experiment/{draft.pk}/change/").content.decode()
    assert "min at the earliest, if the guardrails hold. It also waits" in page
    assert "control has 0, new has 0 of the 100 requests that a step needs of each arm." in page


def test_a_control_of_another_model_than_the_target_is_pointed_at(
    browser: Client, draft: Experiment, versions: Any
) -> None:
    url = f"/admin/routing/experiment/{draft.pk}/change/"
    assert 'id="strange"' not in browser.get(url).content.decode()
    register_model("acme/other", actor="tests")
    draft.target = "acme/other"
    draft.save(update_fields=["target"])
    page = browser.get(url).content.decode()
    assert "The control (control) is acme/echo@1, and clients ask for acme/other" in page
