"""Placement of 1,000 deployments on 200 nodes of 8 devices, in pure Python."""

from __future__ import annotations

import cProfile
import io
import pstats
import random
import statistics
import time
from dataclasses import replace

from inference.capacity.abilities import abilities
from inference.capacity.placement import STRATEGIES, DeviceRoom, Need, place
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

NODES, DEVICES, DEPLOYMENTS = 200, 8, 1_000
GIB = 2**30
ROUNDS = 5
KINDS = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB")
FILES = [f"acme--model-{number}--1" for number in range(400)]
SHOWN_LINES = 8


def place_all(seed: int) -> int:
    """One after another, each with what those before it left; how many found a place."""
    rng = random.Random(seed)
    rooms = [
        DeviceRoom(
            number,
            f"node-{number // DEVICES}/gpu:{number % DEVICES}",
            80 * GIB,
            0,
            True,
            node=f"node-{number // DEVICES}",
            kind=KINDS[number // DEVICES % len(KINDS)],
            used_by_others_bytes=rng.choice((0, 0, 0, GIB)),
            abilities=abilities("gpu", compute_capability=(9, 0), alike_on_node=DEVICES),
            files=frozenset(rng.sample(FILES, 20)),
        )
        for number in range(NODES * DEVICES)
    ]
    placed = 0
    for _ in range(DEPLOYMENTS):
        need = Need(
            bytes=rng.randrange(2, 72) * GIB,
            devices=rng.choice((1, 1, 1, 1, 1, 1, 2, 4)),
            strategy=rng.choice(STRATEGIES),
            options={"quantization": rng.choice(("", "", "fp8_per_block"))},
            files=rng.choice(FILES),
        )
        need = replace(need, by_kind=dict.fromkeys(KINDS[1:], need.bytes + GIB))
        found = place(need, rooms).device_ids
        for number in found:
            room = rooms[number]
            rooms[number] = replace(room, reserved_bytes=room.reserved_bytes + need.on(room))
        placed += bool(found)
    return placed


def bench(setting: Setting) -> None:
    """Median of some rounds, and where the time goes."""
    times = []
    placed = 0
    for seed in range(ROUNDS):
        started = time.perf_counter()
        placed = place_all(seed)
        times.append(time.perf_counter() - started)
    profile = cProfile.Profile()
    profile.runcall(place_all, 0)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(SHOWN_LINES)
    say(text.getvalue())
    note = (
        f"{DEPLOYMENTS} deployments, {NODES} nodes of {DEVICES} devices, {placed} placed; median of {ROUNDS}"
    )
    emit(Figure(name="placement", value=statistics.median(times), unit="s", note=note))
