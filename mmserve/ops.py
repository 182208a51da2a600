"""Ops jobs on stock RQ workers: Redis holds names and values, never code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from rq import Worker
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import import_attribute

from mmserve.errors import PermissionDenied


class TabledJob(Job):
    """A job whose function is one of settings.OPS_JOBS; whatever else stands in Redis does not run."""

    @property
    def func(self) -> Callable[..., Any]:
        if self.instance is not None or self.func_name not in settings.OPS_JOBS:
            raise PermissionDenied(f"{self.func_name!r} is not in the table of ops jobs")
        return import_attribute(self.func_name)

    # RQ imports these by the names that it finds in Redis, and posts webhooks to the addresses there.
    success_callback = failure_callback = stopped_callback = property(lambda self: None)

    def send_webhooks(self, *args: Any, **kwargs: Any) -> None:
        """No ops job has a webhook."""


class OpsWorker(Worker):
    """RQ's forking worker, with JSON whatever serializer the stock command names (its default is pickle)."""

    job_class = TabledJob

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "serializer": JSONSerializer, "job_class": TabledJob})
