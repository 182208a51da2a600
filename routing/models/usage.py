"""What was used: by the hour for reports and budgets, by the minute for the routing statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from django.db import models
from django.db.models import F, Value
from django.db.models.functions import Concat, StrIndex
from django.db.models.lookups import GreaterThan

COUNTS = ("requests", "errors", "cancelled", "prompt_tokens", "cached_tokens", "completion_tokens",
          "cost_nano", "other_cost_nano", "engine_us")  # fmt: skip


class NamedRows(models.QuerySet):
    """Sums by the names of what they are of."""

    def of_names(self, names: Mapping[str, str]) -> Self:
        """Those of these names; of an arm also those of requests that were in other experiments as well."""
        exact = {name: value for name, value in names.items() if name != "arm" or not value}
        rows = self.filter(**exact)
        arms = names["arm"].split(",") if names.get("arm") else []
        if "" in arms:
            return rows.none()
        for arm in arms:
            listed = Concat(Value(","), F("arm"), Value(","), output_field=models.CharField())
            rows = rows.filter(GreaterThan(StrIndex(listed, Value(f",{arm},")), 0))
        return rows


class UsageHour(models.Model):
    """One hour's sums of one key, route, version and arm. Written by ``routing.rollup`` alone."""

    hour = models.DateTimeField()
    key = models.CharField(max_length=36)
    team = models.CharField(max_length=100)
    route = models.CharField(max_length=200)
    model = models.CharField(max_length=200)
    version = models.CharField(max_length=310)  # name@version
    arm = models.CharField(max_length=500)  # experiment/arm, several with commas
    requests = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)
    cancelled = models.BigIntegerField(default=0)
    prompt_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    completion_tokens = models.BigIntegerField(default=0)
    cost_nano = models.BigIntegerField(default=0)
    other_cost_nano = models.BigIntegerField(default=0)
    engine_us = models.BigIntegerField(default=0)

    objects = NamedRows.as_manager()

    class Meta:
        verbose_name = "usage"
        verbose_name_plural = "usage"
        default_permissions = ("view",)
        permissions = [("view_decisions", "Can look at routing decisions")]
        indexes = [
            models.Index(fields=("hour",), name="usage_by_hour"),
            models.Index(fields=("key", "hour"), name="usage_by_key"),
            models.Index(fields=("team", "hour"), name="usage_by_team"),
            models.Index(fields=("route", "hour"), name="usage_by_route"),
        ]

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H}h {self.version}"


class StatsMinute(models.Model):
    """One minute of one route, version and arm; latencies as ``routing.core.histogram`` counts. Kept two days."""

    minute = models.DateTimeField()
    route = models.CharField(max_length=200)
    model = models.CharField(max_length=200)
    version = models.CharField(max_length=310)
    arm = models.CharField(max_length=500)
    requests = models.BigIntegerField(default=0)
    cancelled = models.BigIntegerField(default=0)
    fallbacks = models.BigIntegerField(default=0)
    cache_hits = models.BigIntegerField(default=0)
    prompt_tokens = models.BigIntegerField(default=0)
    cached_tokens = models.BigIntegerField(default=0)
    completion_tokens = models.BigIntegerField(default=0)
    cost_nano = models.BigIntegerField(default=0)
    errors = models.JSONField(default=dict)  # code to count
    ttft = models.JSONField(default=dict)  # bucket to count
    tpot = models.JSONField(default=dict)
    e2e = models.JSONField(default=dict)

    objects = NamedRows.as_manager()

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=("minute",), name="stats_by_minute")]

    def __str__(self) -> str:
        return f"{self.minute:%H:%M} {self.version}"


class UsageCursor(models.Model):
    """How far the stream of usage is in the rows: written with them, so that each record counts once."""

    name = models.CharField(max_length=100, primary_key=True)
    last_id = models.CharField(max_length=50, default="0-0")
    records = models.BigIntegerField(default=0)
    unreadable = models.BigIntegerField(default=0)
    at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.name} at {self.last_id}"
