"""Usage becomes rows exactly once, whoever dies in between. Runs on PostgreSQL as well (test_databases.py)."""

from __future__ import annotations

import datetime
import os
import random
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal

import msgspec
import pytest
from django.conf import settings
from django.db import connection as database
from django.db import connections
from django.db.models import Sum

from inference import usage_thread
from routing import actions, rollup
from routing.core.cost import Period, Scope
from routing.core.records import USAGE_STREAM
from routing.ledgers import standing
from routing.models import StatsMinute, UsageCursor, UsageHour
from routing.spending import budget_entry, spent_of
from routing.stats import stats
from tests.integration.routing.conftest import record

# Rolls up, and is killed between the rows and the cursor's commit.
DIES_IN_THE_MIDDLE = """
import os, signal, sys
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
import redis
from routing import rollup
from routing.models import UsageCursor
rolled = []
def die(self, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
UsageCursor.save = die
rollup.roll_up(redis.Redis.from_url(sys.argv[2]))
"""


def total(name: str = "cost_nano") -> int:
    return UsageHour.objects.aggregate(total=Sum(name))["total"] or 0


@pytest.mark.django_db
def test_records_are_summed_by_hour_and_everything_that_they_name(client, put):
    at = datetime.datetime(2026, 3, 1, 10, 59, 59, tzinfo=datetime.UTC).timestamp()
    put(
        record(at=at, cost_nano=3, assignments={"tone": "b", "size": "a"}),
        record(at=at, cost_nano=4, assignments={"size": "a", "tone": "b"}, cached_tokens=8, engine_s=0.25),
        record(at=at + 1, cost_nano=5, outcome="cancelled"),
        record(at=at + 1, cost_nano=0, outcome="queue_full", count=7, e2e_s=0, ttft_s=0),
    )
    assert rollup.roll_up_all(client) == 4
    first, *others = UsageHour.objects.order_by("hour", "requests")
    assert (first.hour.hour, first.arm, first.model, first.version) == (
        10,
        "size/a,tone/b",
        "acme/echo",
        "acme/echo@1",
    )
    assert (first.requests, first.cost_nano, first.cached_tokens, first.engine_us) == (2, 7, 8, 250_000)
    (later,) = others
    assert (later.requests, later.errors, later.cancelled, later.cost_nano) == (8, 7, 1, 5)


@pytest.mark.django_db
def test_rows_grow_by_what_comes_later_and_nothing_counts_twice(client, put):
    for _ in range(3):
        put(record(), record(key="k2"))
        rollup.roll_up_all(client)
        rollup.roll_up_all(client)
    assert UsageHour.objects.count() <= 4  # an hour may have ended in between
    assert (total(), total("requests")) == (6000, 6)


@pytest.mark.django_db(transaction=True)
def test_killed_between_the_rows_and_the_commit_it_counts_each_record_once(client, put, redis_url):
    put(*[record(cost_nano=1 + number) for number in range(50)])
    done = subprocess.run(
        [sys.executable, "-c", DIES_IN_THE_MIDDLE, str(database.settings_dict["NAME"]), redis_url],
        cwd=settings.BASE_DIR,
        env=dict(os.environ),
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    assert total() == 0
    put(record(cost_nano=100_000))
    assert rollup.roll_up_all(client) == 51
    assert total() == 50 * 51 // 2 + 100_000
    assert rollup.roll_up_all(client) == 0


@pytest.mark.django_db(transaction=True)
def test_two_leaders_at_once_count_each_record_once(client, put):
    stop, failures = threading.Event(), []

    def lead() -> None:
        try:
            while not stop.is_set():
                rollup.roll_up_all(client)
        except Exception as error:
            failures.append(error)
        finally:
            connections.close_all()

    leaders = [threading.Thread(target=lead) for _ in range(2)]
    for leader in leaders:
        leader.start()
    dice = random.Random(7)
    costs = [dice.randrange(1, 10_000) for _ in range(2000)]
    for start in range(0, len(costs), 50):
        put(*[record(cost_nano=cost, key=f"k{cost % 5}") for cost in costs[start : start + 50]])
    until = time.monotonic() + 60
    while total("requests") < len(costs) and time.monotonic() < until:
        time.sleep(0.02)
    stop.set()
    for leader in leaders:
        leader.join(60)
    assert failures == []
    assert (total(), total("requests")) == (sum(costs), len(costs))


@pytest.mark.django_db
def test_only_what_is_rolled_up_and_some_seconds_old_is_cut_off_the_stream(client, put):
    for old in range(1, 301):
        client.xadd(USAGE_STREAM, {"record": msgspec.json.encode(record())}, id=f"{old}-0")
    rollup.trim(client, "150-0")
    left = [int(entry.decode().partition("-")[0]) for entry, _ in client.xrange(USAGE_STREAM)]
    assert left[0] <= 150  # cut by whole nodes, and never beyond what is rolled up
    assert left[0] > 1
    put(record())
    assert rollup.roll_up_all(client) == len(left) + 1
    assert 1 <= client.xlen(USAGE_STREAM) <= 100
    assert rollup.roll_up_all(client) == 0
    assert total("requests") == len(left) + 1


@pytest.mark.django_db
def test_a_record_that_cannot_be_read_is_counted_and_stops_nobody(client, put):
    client.xadd(USAGE_STREAM, {"record": b"{"})
    client.xadd(USAGE_STREAM, {"other": b""})
    put(record(), record(at=1e300))
    assert rollup.roll_up_all(client) == 4
    assert (total("requests"), UsageCursor.objects.get().unreadable) == (1, 3)


@pytest.mark.django_db
def test_a_new_redis_with_a_clock_that_is_behind_loses_no_record(client, put):
    put(record())
    rollup.roll_up_all(client)
    ahead = f"{int(time.time() * 1000) + 3_600_000}-0"
    UsageCursor.objects.update(last_id=ahead)
    client.flushall()
    rollup.roll_up_all(client)
    put(record())
    assert rollup.roll_up_all(client) == 1
    assert total("requests") == 2


@pytest.mark.django_db
def test_a_stream_that_nobody_rolls_up_raises_an_alarm_and_so_does_a_lost_record(client, put):
    put(*[record() for _ in range(6)])
    assert rollup.lag(client, most=100)["alarm"] == ""
    assert "is a controller running?" in rollup.lag(client, most=10)["alarm"]
    client.incr("mmserve:usage:lost")
    assert "1 usage records were turned away" in rollup.lag(client, most=100)["alarm"]


@pytest.mark.django_db
def test_statistics_have_causes_latencies_and_costs_over_the_window(client, put):
    now = time.time()
    put(
        *[record(at=now, ttft_s=0.1 * n, e2e_s=1.0 * n, cached_tokens=n % 2) for n in range(1, 101)],
        record(at=now, outcome="engine_lost", status=503, cost_nano=0, fallbacks=1),
        record(at=now, outcome="queue_full", status=429, count=9, cost_nano=0),
        record(at=now - 7200, cost_nano=10**9),
    )
    rollup.roll_up_all(client)
    (row,), left_out = stats(1800, {"route": "smart"}, 10)
    assert left_out == 0
    assert (row["requests"], row["fallbacks"], row["cache_hits"]) == (110, 1, 50)
    assert row["errors"] == {"engine_lost": 1, "queue_full": 9}
    assert row["cost_usd"] == "0.0001"
    assert row["e2e_s"]["p50"] == pytest.approx(50, rel=0.021)
    assert row["e2e_s"]["p99"] == pytest.approx(99, rel=0.021)
    assert row["ttft_s"]["p95"] == pytest.approx(9.5, rel=0.03)
    assert stats(3 * 3600, {}, 10)[0][0]["cost_usd"] == "1.0001"


@pytest.mark.django_db
def test_minutes_are_forgotten_and_hours_are_not(client, put):
    put(record(at=time.time() - 50 * 3600), record())
    rollup.roll_up_all(client)
    rollup.forget_old_minutes()
    assert (StatsMinute.objects.count(), UsageHour.objects.count()) == (1, 2)


@pytest.mark.django_db
def test_a_budget_knows_what_its_period_has_cost_and_from_which_record_on_to_count(client, put):
    actions.create_team("search", actor="tests")
    budget = actions.create_budget(
        Scope.TEAM.value, "search", period=Period.DAY.value, limit_usd=Decimal(5), actor="tests"
    )
    put(
        record(cost_nano=7),
        record(cost_nano=8, at=time.time() - 86_400 * 2),
        record(cost_nano=9, team="other"),
    )
    rollup.roll_up_all(client)
    spent = spent_of(budget_entry(budget), time.time())
    assert spent.nano == 7
    assert spent.last_id == client.xrevrange(USAGE_STREAM, count=1)[0][0].decode()
    assert standing(budget) == (7, 0, False)


@pytest.mark.django_db
def test_a_budget_that_was_off_is_opened_anew_with_what_was_spent_meanwhile(client, put):
    budget = actions.create_budget(Scope.ROUTE.value, "smart", limit_usd=Decimal(5), actor="tests")
    first = budget_entry(budget).id
    budget = actions.update_budget(budget, limit_usd=Decimal(6), actor="tests")
    assert budget_entry(budget).id == first
    budget = actions.update_budget(budget, enabled=False, actor="tests")
    put(record(cost_nano=7))
    rollup.roll_up_all(client)
    budget = actions.update_budget(budget, enabled=True, actor="tests")
    assert budget_entry(budget).id != first
    assert spent_of(budget_entry(budget), time.time()).nano == 7


@pytest.mark.django_db(transaction=True)
def test_the_controllers_thread_rolls_up_while_it_leads_and_survives_a_fault(client, put, monkeypatch):
    stop, leading, faults = threading.Event(), threading.Event(), []
    monkeypatch.setattr(usage_thread, "EVERY_S", 0.01)
    forget = rollup.forget_old_minutes

    def fails_once() -> None:
        if not faults:
            faults.append(1)
            raise ZeroDivisionError
        forget()

    monkeypatch.setattr(rollup, "forget_old_minutes", fails_once)
    thread = usage_thread.UsageThread(leading, stop)
    thread.start()
    put(record())
    leading.set()
    until = time.monotonic() + 60
    while total("requests") < 1 and time.monotonic() < until:
        time.sleep(0.02)
    put(record())
    while total("requests") < 2 and time.monotonic() < until:
        time.sleep(0.02)
    stop.set()
    thread.join(60)
    assert (total("requests"), faults, thread.is_alive()) == (2, [1], False)
