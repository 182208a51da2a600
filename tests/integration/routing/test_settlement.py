"""From the stream of usage to an experiment's totals, each record once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import redis
from django.db import DatabaseError

from registry.actions import promote, register_model
from registry.models import ModelVersion
from routing.actions import experiments as actions
from routing.core.records import USAGE_STREAM, UsageRecord
from routing.experiments.report import report_of
from routing.experiments.settle import settle
from routing.models.experiments import Experiment, Exposure
from routing.rollup import roll_up_all
from tests.integration.api.conftest import make_ready, source
from tests.integration.api.test_experiments import arms, traffic

__all__ = ["source"]  # a fixture


@pytest.fixture
def running(source: str, db: None) -> Experiment:
    model = register_model("acme/echo", actor="tests")
    versions: list[ModelVersion] = [make_ready(model, "1", source), make_ready(model, "2", source)]
    promote(versions[0], actor="tests")
    row = actions.create_experiment("faster", arms(versions), actor="tests", target="acme/echo", ramp=[])
    return actions.start_experiment(row, actor="tests")


def write(client: redis.Redis, records: list[UsageRecord]) -> None:
    for record in records:
        client.xadd(USAGE_STREAM, {"record": msgspec.json.encode(record)})


def test_each_record_of_the_stream_counts_once(running: Any, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    records = traffic(120)
    write(client, records[:70])
    roll_up_all(client)
    roll_up_all(client)
    assert sum(one.requests for one in report_of(running).arms) == 70
    write(client, records[70:])
    roll_up_all(client)
    client.close()
    assert sum(one.requests for one in report_of(running).arms) == 120
    assert Exposure.objects.count() == 120


def test_what_cannot_be_settled_counts_nothing_twice(
    running: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis.from_url(redis_url)
    write(client, traffic(10))
    with monkeypatch.context() as broken:
        broken.setattr("routing.experiments.settle.insert_exposures", fail)
        with pytest.raises(DatabaseError, match="disk"):
            roll_up_all(client)
    roll_up_all(client)
    client.close()
    assert sum(one.requests for one in report_of(running).arms) == 10


def test_an_exposure_is_as_its_record_and_the_first_of_a_request_is_kept(running: Any) -> None:
    (record,) = traffic(1)
    settle([record])
    settle([msgspec.structs.replace(record, served_id="acme/other@1")])
    (found,) = Exposure.objects.all()
    phase, unit = record.units["faster"].split(".")
    assert (found.request_id, found.key, found.experiment, found.arm) == (
        record.request_id,
        "k",
        running,
        record.assignments["faster"],
    )
    assert (found.at.timestamp(), found.phase, found.unit) == (record.at, int(phase), unit)
    assert found.served_id == record.served_id


def test_a_record_that_cannot_be_read_stops_nothing(running: Any, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.xadd(USAGE_STREAM, {"record": b"{"})
    write(client, traffic(5))
    roll_up_all(client)
    client.close()
    assert sum(one.requests for one in report_of(running).arms) == 5


def fail(*_: Any, **__: Any) -> None:
    raise DatabaseError("the disk is full")
