"""The routing table of a large registry, read from a database: ``python -m tests.bench.table_rows``."""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
import time

import django

MODELS, VERSIONS, DEPLOYMENTS, ROUTES, LINES = 1_000, 5, 1_000, 200, 10
ROUNDS = 9


def main() -> None:
    """Times of the first table and of those after it, wall and CPU in seconds, as one JSON line."""
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    _create()
    from inference.snapshot import routing_table

    # As a gateway does at its start: the collector is not to look through Django's heap.
    gc.collect()
    gc.freeze()
    walls, cpus = [], []
    for _ in range(1 + ROUNDS):
        wall, cpu = time.perf_counter(), time.thread_time()
        routing_table()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.thread_time() - cpu)
    print(
        json.dumps(
            {
                "first_cpu_s": cpus[0],
                "wall_s": statistics.median(walls[1:]),
                "cpu_s": statistics.median(cpus[1:]),
            }
        )
    )


def _create() -> None:
    from inference.models import Deployment
    from registry.models import ModelVersion
    from routing.models.routes import Route, RouteCandidate
    from tests.bench.many_rows import create

    create(MODELS, VERSIONS)
    versions = list(ModelVersion.objects.select_related("model"))
    Deployment.objects.bulk_create(
        Deployment(name=f"d{number}", version=version, replicas=1)
        for number, version in enumerate(versions[:DEPLOYMENTS])
    )
    routes = Route.objects.bulk_create(
        Route(name=f"r{number}", policy="balanced") for number in range(ROUTES)
    )
    RouteCandidate.objects.bulk_create(
        RouteCandidate(
            route=route, position=place, target=versions[(number * LINES + place) % len(versions)].served_id
        )
        for number, route in enumerate(routes)
        for place in range(LINES)
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            MMSERVE_DATA_DIR=folder, MMSERVE_DEBUG="1", DATABASE_URL=f"sqlite:///{folder}/rows.sqlite3"
        )
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mmserve.settings")
        django.setup()
        main()
