"""One routing decision over 200 candidates, and the making of a large table."""

from __future__ import annotations

import gc
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal

from routing.core.cost import Prices
from routing.core.decision import DeploymentLoad, RequestFacts, decide
from routing.core.route import CandidateEntry, Constraints, Policy, RouteEntry, Wishes
from routing.core.scorer import TRAITS, Scorer, traits_of
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.bench.report import Figure, emit
from tests.bench.setting import Setting

CANDIDATES = 200
MODELS, VERSIONS_EACH, ROUTES, LINES = 1_000, 5, 200, 10
CONSTRAINTS = Constraints(
    require=("chat",), max_cost_usd=0.1, max_ttft_s=30.0, max_tpot_s=5.0, min_context=4096
)
ROUNDS, QUICK_ROUNDS = 20_000, 2_000


def bench(setting: Setting) -> None:
    """Figures in µs and ms: by the clock, and of this thread's CPU, which a busy machine does not stretch."""
    _decisions(QUICK_ROUNDS if setting.quick else ROUNDS)
    _snapshots(3 if setting.quick else 9)
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.table_rows"],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    note = (
        "1000 models, 5000 versions, 1000 deployments, 200 routes, from SQLite; "
        f"CPU {found['cpu_s'] * 1000:.0f} ms, the first of a process {found['first_cpu_s'] * 1000:.0f} ms"
    )
    emit(Figure(name="routing_snapshot_from_rows", value=found["wall_s"] * 1000, unit="ms", note=note))


def _decisions(rounds: int) -> None:
    chance = random.Random(7)
    table = _table(CANDIDATES, 1, 1, CANDIDATES, chance)
    live = table.columns({key: _load(chance) for key in table.deployments})
    facts = [_facts(number) for number in range(rounds)]
    decide(table, live, facts[0])
    walls, cpus = [], []
    gc.collect()
    for request in facts:
        # Beats arrive between requests, as they do in a gateway.
        live.note(f"d{chance.randrange(CANDIDATES)}", _load(chance))
        wall, cpu = _timed(lambda request=request: decide(table, live, request))
        walls.append(wall)
        cpus.append(cpu)
    note = f"{CANDIDATES} candidates, balanced with a scorer, every filter on, over {rounds} requests"
    for kind, times in (("", walls), ("_cpu", cpus)):
        for name, value in (
            ("p50", statistics.median(times)),
            ("p99", statistics.quantiles(times, n=100)[98]),
        ):
            emit(Figure(name=f"routing_decision{kind}_{name}", value=value * 1e6, unit="us", note=note))


def _snapshots(rounds: int) -> None:
    times = [_snapshot() for _ in range(rounds)]
    note = (
        f"{MODELS} models, {MODELS * VERSIONS_EACH} versions each with a deployment, {ROUTES} routes of {LINES}; "
        "from entries, without the queries"
    )
    for place, kind in enumerate(("", "_cpu")):
        value = statistics.median(time[place] for time in times) * 1000
        emit(Figure(name=f"routing_snapshot{kind}", value=value, unit="ms", note=note))


def _facts(number: int) -> RequestFacts:
    return RequestFacts(
        decision_id=f"request-{number}",
        model="route-0",
        chat=True,
        prompt_tokens_bound=900,
        prompt_tokens_estimate=300,
        max_tokens=200,
        asks=("json",),
        wishes=Wishes(require=("region=eu",), max_cost_usd=0.05, max_ttft_s=20.0),
        allowed=("m*", "route-*"),
        budget_left_usd=1.0,
        traits=traits_of("Why is the sky blue?"),
    )


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - cpu


def _snapshot() -> tuple[float, float]:
    chance = random.Random(7)
    entries = _entries(MODELS, VERSIONS_EACH, ROUTES, LINES, chance)
    gc.collect()
    return _timed(lambda: RoutingTable.build(revision=1, **entries))


def _table(models: int, versions: int, routes: int, lines: int, chance: random.Random) -> RoutingTable:
    return RoutingTable.build(revision=1, **_entries(models, versions, routes, lines, chance))


def _entries(models: int, versions: int, routes: int, lines: int, chance: random.Random) -> dict[str, object]:
    served = [(f"m{model}", f"m{model}@{version}") for model in range(models) for version in range(versions)]
    return {
        "models": [ModelEntry(id=f"m{model}", default=f"m{model}@{versions - 1}") for model in range(models)],
        "versions": [
            VersionEntry(
                served_id=served_id,
                model=model,
                capabilities=frozenset(("completion", "chat", "json")),
                tags=frozenset(("region=eu", f"tier={number % 3}")),
                prices=Prices.of(
                    per_million_input=Decimal(number % 9), per_million_output=Decimal(number % 20)
                ),
                context_length=4096 * (1 + number % 4),
                quality=chance.random(),
            )
            for number, (model, served_id) in enumerate(served)
        ],
        "aliases": {},
        "deployments": [
            DeploymentEntry(id=f"d{number}", served_id=served_id, limits=Limits(), load_s=5.0)
            for number, (_, served_id) in enumerate(served)
        ],
        "routes": [
            RouteEntry(
                id=f"route-{route}",
                candidates=tuple(
                    CandidateEntry(target=served_id, weight=1.0 + place)
                    for place, (_, served_id) in enumerate(chance.sample(served, lines))
                ),
                policy=Policy.BALANCED,
                constraints=Constraints(
                    require=("chat",), max_cost_usd=0.1, max_ttft_s=30.0, max_tpot_s=5.0, min_context=4096
                ),
            )
            for route in range(routes)
        ],
        "scorer": Scorer(
            name="1",
            weights={served_id: tuple(chance.uniform(-1, 1) for _ in TRAITS) for _, served_id in served[::2]},
        ),
    }


def _load(chance: random.Random) -> DeploymentLoad:
    return DeploymentLoad(
        ready=chance.randrange(3),
        running=chance.randrange(64),
        waiting=chance.randrange(20),
        max_streams=64,
        jobs_per_s=chance.uniform(1, 20),
        tokens_per_s=chance.uniform(50, 900),
        ttft_s=chance.uniform(0.05, 2),
    )
