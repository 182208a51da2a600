"""Several processes at one experiment: each step is taken once, and nothing counts twice.

Runs on PostgreSQL as well (test_databases.py).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis
from django.conf import settings as django_settings
from django.db import connection as database
from django.db import connections

from mmserve.errors import Conflict
from registry.actions import promote, register_model
from registry.models import Event, ModelVersion
from routing.actions import experiments as actions
from routing.actions.feedback import give_feedback
from routing.core.records import USAGE_STREAM
from routing.core.statistics import metrics as m
from routing.experiments import settle
from routing.experiments.report import report_of
from routing.models import UsageHour
from routing.models.experiments import LIVE, Experiment, Exposure, State
from routing.rollup import roll_up_all
from tests.integration.api.conftest import make_ready, source
from tests.integration.api.test_experiments import arms, traffic

__all__ = ["source"]  # a fixture
pytestmark = pytest.mark.django_db(transaction=True)

DJANGO = """
import os, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
"""
# Reads the experiment, says so, waits for a line, and takes its step.
STEPS = (
    DJANGO
    + """
from mmserve.errors import Conflict
from routing.actions import experiments as actions
row = actions.find_experiment("faster")
print("read", flush=True)
sys.stdin.readline()
try:
    getattr(actions, sys.argv[2])(row, actor=f"process:{os.getpid()}")
    print("done", flush=True)
except Conflict as error:
    print("refused: " + error.message, flush=True)
"""
)
# What a controller does, until its input ends.
LEADS = (
    DJANGO
    + """
import select
import redis
from routing.experiments.settle import join_feedback
from routing.experiments.watch import ExperimentWatch
from routing.rollup import roll_up_all
client = redis.Redis.from_url(sys.argv[2])
watch = ExperimentWatch()
print("leads", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    roll_up_all(client)
    join_feedback()
    watch.look()
print("done", flush=True)
"""
)
REQUESTS = 600
# Long enough for another thread to come to the same place, if nothing keeps it from there.
TOGETHER_S = 1.0

Started = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def versions(source: str, db: None) -> list[ModelVersion]:
    model = register_model("acme/echo", actor="tests")
    found = [make_ready(model, "1", source), make_ready(model, "2", source)]
    promote(found[0], actor="tests")
    return found


@pytest.fixture
def ramping(versions: list[ModelVersion]) -> Experiment:
    row = actions.create_experiment("faster", arms(versions), actor="tests", target="acme/echo")
    return actions.start_experiment(row, actor="tests")


@pytest.fixture
def start() -> Iterator[Started]:
    """Programs on the test's database."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(database.settings_dict["NAME"]), *arguments],
            cwd=django_settings.BASE_DIR,
            env=dict(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ready(*processes: subprocess.Popen[str]) -> None:
    """Until each of them has said its first line."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline()


def go_on(*processes: subprocess.Popen[str]) -> list[str]:
    """Let all of them go on; what each of them said last."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0].strip() for process in processes]


@pytest.mark.parametrize(
    "steps",
    [
        ("ramp_experiment", "ramp_experiment"),
        ("ramp_experiment", "roll_back_experiment"),
    ],
)
def test_of_two_processes_that_step_at_once_one_is_told_of_the_other(
    ramping: Experiment, start: Started, steps: tuple[str, str]
) -> None:
    processes = [start(STEPS, step) for step in steps]
    ready(*processes)
    said = go_on(*processes)

    assert sorted(one.partition(":")[0] for one in said) == ["done", "refused"]
    row = Experiment.objects.get()
    assert row.revision == ramping.revision + 1
    taken = Event.objects.filter(subject=row.subject, actor__startswith="process:")
    assert taken.count() == 1
    assert taken.get().data["state"] == row.state


def test_two_controllers_and_a_gateway_at_once_count_each_request_and_rating_once(
    ramping: Experiment, start: Started, redis_url: str
) -> None:
    ramping = actions.update_experiment(ramping, actor="tests", step_minutes=0, step_requests=1)
    while ramping.state == State.RAMPING:
        ramping = actions.ramp_experiment(ramping, actor="tests")
    client = redis.Redis.from_url(redis_url)
    leaders = [start(LEADS, redis_url) for _ in range(2)]
    ready(*leaders)
    records = traffic(REQUESTS)
    for number, record in enumerate(records):
        client.xadd(USAGE_STREAM, {"record": msgspec.json.encode(record)})
        if number % 3 == 0:
            give_feedback(record.request_id, key="k", rating=1.0)
    assert go_on(*leaders) == ["done", "done"]
    roll_up_all(client)
    settle.join_feedback()
    client.close()

    report = report_of(Experiment.objects.get())
    assert sum(one.requests for one in report.arms) == len(records) == Exposure.objects.count()
    assert report.distinct_units == len(records)
    assert sum(one.totals.sums[m.RATINGS].sum() for one in report.arms) == len(records[::3])
    assert sum(UsageHour.objects.values_list("requests", flat=True)) == len(records)


def test_of_two_that_start_on_one_target_at_once_one_is_refused(
    versions: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        actions.create_experiment(name, arms(versions), actor="tests", target="acme/echo")
    meet_before(monkeypatch, actions, "_move")
    refused: list[str] = []

    def begin(name: str) -> None:
        try:
            actions.start_experiment(actions.find_experiment(name), actor="tests")
        except Conflict as error:
            refused.append(error.message)

    in_threads(lambda: begin("one"), lambda: begin("other"))

    assert Experiment.objects.filter(state__in=LIVE).count() == 1
    assert len(refused) == 1
    assert "exclusion group" in refused[0]


def test_who_counts_records_and_who_counts_ratings_do_not_wait_for_each_other_for_ever(
    ramping: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    while ramping.state == State.RAMPING:
        ramping = actions.ramp_experiment(ramping, actor="tests")
    records = traffic(80)
    by_arm = sorted(records, key=lambda one: one.assignments["faster"])
    settle.settle(by_arm)
    # One counts the new arm first, and the other the control.
    for record in (by_arm[-1], by_arm[0]):
        give_feedback(record.request_id, key="k", rating=1.0)
    late = [msgspec.structs.replace(one, request_id=f"{n:024x}") for n, one in enumerate(by_arm, 1000)]
    meet_after(monkeypatch, settle, "add_totals")

    failures = in_threads(lambda: settle.settle(late), settle.join_feedback)

    assert failures == []
    report = report_of(Experiment.objects.get())
    assert sum(one.requests for one in report.arms) == 2 * len(records)
    assert sum(one.totals.sums[m.RATINGS].sum() for one in report.arms) == 2


def meet_before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """Two threads that can come to this call both do before either makes it."""
    plain, barrier = getattr(where, name), threading.Barrier(2)

    def met(*arguments: Any, **named: Any) -> Any:
        _wait(barrier)
        return plain(*arguments, **named)

    monkeypatch.setattr(where, name, met)


def meet_after(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """The same, after the first call of each."""
    plain, barrier = getattr(where, name), threading.Barrier(2)

    def met(*arguments: Any, **named: Any) -> Any:
        found = plain(*arguments, **named)
        _wait(barrier)
        return found

    monkeypatch.setattr(where, name, met)


def _wait(barrier: threading.Barrier) -> None:
    # Broken: the other one is kept out, or was here before.
    with contextlib.suppress(threading.BrokenBarrierError):
        barrier.wait(TOGETHER_S)


def in_threads(*calls: Callable[[], Any]) -> list[Exception]:
    """Make the calls at once; what they failed with."""
    failures: list[Exception] = []

    def make(call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return failures
