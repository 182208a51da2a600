"""Request for a model that sleeps, its device full with an idle one, to the first token; the peer swaps by hand."""

from __future__ import annotations

import datetime
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any

from tests.bench.bare_vllm import SHIPPED, TUNED, bare_vllm
from tests.bench.completion import first_token_at
from tests.bench.load import Target
from tests.bench.platform import MODEL, Platform, whole_platform
from tests.bench.processes import ServerFailed
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

SWAPS, QUICK_SWAPS = 10, 3
PEER_ROUNDS = 2
OPTIONS = {"min_residency_s": 0}
# Room for one of them: SmolLM2 takes about 1.4 GiB with the default cache.
BUDGET_BYTES = 2 * 2**30


def bench(setting: Setting) -> None:
    """Ours takes turns between two versions of one checkpoint; the peer is stopped and another started."""
    with whole_platform(setting.work, MMSERVE_MEMORY_BYTES=str(BUDGET_BYTES)) as platform:
        targets = _two_versions(platform)
        took = []
        stages: list[dict[str, float]] = []
        for number in range(QUICK_SWAPS if setting.quick else SWAPS):
            target = targets[number % 2]
            started, wall = time.perf_counter(), time.time()
            took.append(first_token_at(target, platform.process) - started)
            # The rows are written a moment after the first token.
            time.sleep(1.0)
            stages.append(_stages(setting.work / "platform", target.model, wall, took[-1]))
            say(
                f"  swap {number + 1}: {took[-1]:.2f} s, "
                + ", ".join(f"{k} {v:.2f}" for k, v in stages[-1].items())
            )
        model_path = platform.model_path
    ours = statistics.median(took)
    parts = ", ".join(f"{name} {statistics.median(one[name] for one in stages):.2f} s" for name in stages[0])
    for peer, tuned in ((SHIPPED, False), (TUNED, True)):
        theirs = statistics.median(
            _by_hand(model_path, setting.work, tuned=tuned) for _ in range(PEER_ROUNDS)
        )
        emit(
            Figure(
                name="swap",
                value=ours,
                unit="s",
                peer=f"stopping one {peer} and starting another",
                peer_value=theirs,
                note=f"p50 of {len(took)}; {parts}",
            )
        )


def _two_versions(platform: Platform) -> list[Target]:
    version = platform.rest("GET", f"/v1/registry/versions?model__name={MODEL}&version=1")["results"][0]
    known = platform.rest("GET", f"/v1/registry/versions?model__name={MODEL}&version=2")["results"]
    if not known:
        for label in ("2", "3"):
            body = {"version": label, "engine_options": OPTIONS}
            platform.rest("POST", f"/v1/registry/versions/{version['id']}/duplicate", body)
    targets = []
    for label in ("2", "3"):
        name = f"{MODEL}@{label}"
        platform.rest("POST", f"/v1/models/{name}/load", {})
        target = Target(url=platform.target.url, model=name, api_key=platform.target.api_key)
        first_token_at(target, platform.process)
        targets.append(target)
    return targets


def _stages(data: Path, model: str, asked_at: float, took: float) -> dict[str, float]:
    """From the replicas' rows: drain of the other, start, load, and the rest to the first token."""
    with sqlite3.connect(data / "mmserve.sqlite3") as rows:
        ended = rows.execute("SELECT max(ended_at) FROM inference_replica").fetchone()[0]
        created, ready = rows.execute(
            "SELECT created_at, ready_at FROM inference_replica WHERE ready_at IS NOT NULL "
            "ORDER BY created_at DESC LIMIT 1"
        ).fetchone()
    moments = [asked_at, _unix(ended), _unix(created), _unix(ready), asked_at + took]
    names = ("drain", "place", "load", "first token")
    return {name: max(0.0, moments[at + 1] - moments[at]) for at, name in enumerate(names)}


def _unix(text: Any) -> float:
    if text is None:
        raise ServerFailed("a replica's row has no time")
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


def _by_hand(model_path: Path, work: Path, *, tuned: bool) -> float:
    with bare_vllm(model_path, work, tuned=tuned) as (bare, process):
        first_token_at(bare, process)
        started = time.perf_counter()
    with bare_vllm(model_path, work, tuned=tuned) as (bare, process):
        took = first_token_at(bare, process) - started
    say(f"  by hand: {took:.2f} s")
    return took
