"""Placement of 1,000 deployments on 200 nodes of 8 devices, in pure Python."""

from __future__ import annotations

import cProfile
import io
import pstats
import random
import statistics
import time
from dataclasses import replace

from inference.capacity.placement import DeviceRoom, place
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

NODES, DEVICES, DEPLOYMENTS = 200, 8, 1_000
GIB = 2**30
ROUNDS = 5
SHOWN_LINES = 8


def place_all(seed: int) -> int:
    """One after another, each with what those before it left; how many found a place."""
    rng = random.Random(seed)
    rooms = [
        DeviceRoom(number, f"node-{number // DEVICES}/gpu:{number % DEVICES}", 80 * GIB, 0, True)
        for number in range(NODES * DEVICES)
    ]
    placed = 0
    for _ in range(DEPLOYMENTS):
        needed = rng.randrange(2, 72) * GIB
        found = place(needed, rooms).device_id
        if found is not None:
            rooms[found] = replace(rooms[found], reserved_bytes=rooms[found].reserved_bytes + needed)
            placed += 1
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
