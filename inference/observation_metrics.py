"""How true the memory estimates are, for Prometheus: read from the rows when /metrics is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from django.db import DatabaseError
from django.db.models import Max
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.capacity.calibration import grouped
from inference.models import LoadObservation

log = logging.getLogger(__name__)

LABELS = ("model", "device_kind", "quantization")


class Observations(Collector):
    """The latest load of each version on each kind of device."""

    def describe(self) -> list[Metric]:
        """Nothing before the database is there."""
        return []

    def collect(self) -> Iterator[Metric]:
        error = GaugeMetricFamily(
            "mmserve_memory_estimate_error_ratio",
            "Predicted over measured memory of the latest load, minus 1.",
            labels=LABELS,
        )
        sizes = GaugeMetricFamily(
            "mmserve_replica_memory_bytes",
            "Memory of the latest load on each of its devices, by part, as predicted and as measured.",
            labels=(*LABELS, "part", "source"),
        )
        try:
            for row in latest():
                labels = (row.version.served_id, row.device_kind, row.quantization)
                error.add_metric(labels, row.error)
                for source, parts in (("predicted", grouped(row.predicted)), ("measured", row.measured)):
                    for part, count in parts.items():
                        sizes.add_metric((*labels, part, source), count)
        except DatabaseError as problem:
            # The other metrics are worth an answer without these.
            log.warning("the memory observations cannot be read: %s", problem)
            return
        yield error
        yield sizes


def latest() -> list[LoadObservation]:
    """One row for each version, kind of device and quantization."""
    newest = (
        LoadObservation.objects.order_by()
        .values("version", "device_kind", "quantization")
        .annotate(newest=Max("pk"))
        .values("newest")
    )
    return list(LoadObservation.objects.filter(pk__in=newest).select_related("version__model"))


def register() -> None:
    """Once a process."""
    REGISTRY.register(Observations())
