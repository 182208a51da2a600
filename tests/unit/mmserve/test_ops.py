"""Redis is no code channel."""

from __future__ import annotations

from typing import Any

import pytest
from rq.job import Job

from mmserve.errors import PermissionDenied
from mmserve.ops import TabledJob
from registry import jobs


def job(function: str, **fields: Any) -> TabledJob:
    made = TabledJob(id="x", connection=object(), serializer="rq.serializers.JSONSerializer")
    made._func_name, made._instance, made._args, made._kwargs = function, None, [], {}
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_function_of_the_table_is_found() -> None:
    assert job("registry.jobs.import_version").func is jobs.import_version


@pytest.mark.parametrize(
    "function", ["os.system", "registry.jobs._fail", "registry.store.remove", "builtins.eval"]
)
def test_a_function_that_is_not_in_the_table_does_not_run(function: str) -> None:
    with pytest.raises(PermissionDenied, match="not in the table"):
        _ = job(function).func


def test_a_method_of_an_instance_does_not_run() -> None:
    with pytest.raises(PermissionDenied):
        _ = job("registry.jobs.import_version", _instance="text").func


def test_callbacks_and_webhooks_found_in_redis_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(
        "registry.jobs.import_version",
        _success_callback_name="os.system",
        _failure_callback_name="os.system",
        _stopped_callback_name="os.system",
        webhooks=[object()],
    )

    assert (made.success_callback, made.failure_callback, made.stopped_callback) == (None, None, None)
    made.send_webhooks("finished")


def test_stock_rq_would_have_run_it() -> None:
    stock = Job(id="x", connection=object())
    stock._func_name, stock._instance = "os.getpid", None

    assert callable(stock.func)
