"""A simulator of swapping: our choice of victims and batching against LRU, keep-alive and no batching.

Models arrive on one device that holds a few of them. Time is simulated; a load takes as long as the model's bytes
at a given rate, a request as long as its tokens. Traces are seeded. Every policy sees the same trace.

``python -m tests.bench.swap_sim`` prints a table; ``make bench ARGS="--only swap_sim"`` prints JSON lines.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inference.capacity.swap import Resident, UseRate, Wanted, choose_victims
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

LOAD_BYTES_PER_S = 1.0  # sizes are in units of one second of loading
STREAMS = 8  # requests that one model runs at once
TICK_S = 0.5
MAX_WAIT_S = 30.0
MIN_RESIDENCY_S = 10.0
HOUR_S = 3600.0
# The policy's constants were chosen on seeds 1 to 10: it is judged on others.
HELD_OUT = tuple(range(101, 121))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at: float
    model: int
    service_s: float


@dataclass(slots=True)
class State:
    """One model in the simulation."""

    size: float
    queue: deque[Arrival] = field(default_factory=deque)
    ends: list[float] = field(default_factory=list)  # of what runs, a heap
    up_at: float | None = None  # when its load is done; None: not up
    draining: bool = False
    used_at: float = 0.0
    asked_at: float | None = None
    rate: UseRate = field(default_factory=lambda: UseRate(0.0))

    def ready(self, now: float) -> bool:
        return self.up_at is not None and self.up_at <= now

    def busy(self) -> bool:
        return bool(self.queue or self.ends)


# Which models go so that ``wanted`` fits, or () to wait.
Policy = Callable[["Device", int, float, float], Sequence[int]]


@dataclass(slots=True)
class Result:
    """What a policy made of a trace."""

    waits: list[float]
    swaps: int
    moved: float
    hours: float

    @property
    def p99(self) -> float:
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    @property
    def swaps_per_hour(self) -> float:
        return self.swaps / self.hours


class Device:
    """Runs a trace under a policy."""

    def __init__(self, sizes: Sequence[float], capacity: float, policy: Policy) -> None:
        self.models = [State(size) for size in sizes]
        self.capacity = capacity
        self.policy = policy
        self.waits: list[float] = []
        self.swaps = 0
        self.moved = 0.0

    def resident(self) -> list[int]:
        return [number for number, model in enumerate(self.models) if model.up_at is not None]

    def free(self) -> float:
        return self.capacity - sum(self.models[number].size for number in self.resident())

    def run(self, trace: Sequence[Arrival]) -> Result:
        """Until the last request is answered."""
        coming = deque(trace)
        now = 0.0
        while coming or any(model.busy() for model in self.models):
            while coming and coming[0].at <= now:
                arrival = coming.popleft()
                model = self.models[arrival.model]
                model.queue.append(arrival)
                model.used_at = now
                model.rate.observe(1.0 / TICK_S, now)
            self._serve(now)
            self._swap(now)
            now += TICK_S
        return Result(self.waits, self.swaps, self.moved, now / HOUR_S)

    def _serve(self, now: float) -> None:
        for model in self.models:
            model.rate.observe(0.0, now)
            while model.ends and model.ends[0] <= now:
                heapq.heappop(model.ends)
            if model.ready(now) and not model.draining:
                while model.queue and len(model.ends) < STREAMS:
                    arrival = model.queue.popleft()
                    self.waits.append(now - arrival.at)
                    heapq.heappush(model.ends, now + arrival.service_s)
                    model.used_at = now
            if model.draining and not model.ends:
                model.up_at, model.draining = None, False
            model.asked_at = (
                (model.asked_at if model.asked_at is not None else now)
                if (model.queue and model.up_at is None)
                else None
            )

    def _swap(self, now: float) -> None:
        asking = [number for number, model in enumerate(self.models) if model.asked_at is not None]
        asking.sort(key=lambda number: self.models[number].asked_at or 0.0)
        for number in asking:
            model = self.models[number]
            if self.free() >= model.size:
                self._load(number, now)
                continue
            leaving = sum(one.size for one in self.models if one.draining)
            if self.free() + leaving >= model.size:
                return  # the room comes by itself: nobody behind may take it
            for victim in self.policy(self, number, now, self.free() + leaving):
                self.models[victim].draining = True
            return

    def _load(self, number: int, now: float) -> None:
        model = self.models[number]
        model.up_at = now + model.size / LOAD_BYTES_PER_S
        model.asked_at = None
        self.swaps += 1
        self.moved += model.size


def ours(device: Device, number: int, now: float, free: float) -> Sequence[int]:
    """The product's own choice."""
    wanted = Wanted(
        bytes=int(device.models[number].size * 1000),
        waited_s=now - (device.models[number].asked_at or now),
        max_wait_s=MAX_WAIT_S,
        load_s=device.models[number].size / LOAD_BYTES_PER_S,
    )
    residents = [
        Resident(
            id=str(other),
            bytes=int(model.size * 1000),
            resident_s=max(0.0, now - (model.up_at or now)),
            min_residency_s=MIN_RESIDENCY_S,
            busy=model.busy() or not model.ready(now),
            uses_per_s=model.rate.at(now),
            reload_s=model.size / LOAD_BYTES_PER_S,
        )
        for other, model in enumerate(device.models)
        if model.up_at is not None and not model.draining
    ]
    return [int(name) for name in choose_victims(wanted, residents, int(free * 1000)).victims]


def _oldest_first(device: Device, number: int, free: float, eligible: Sequence[int]) -> Sequence[int]:
    chosen: list[int] = []
    for other in sorted(eligible, key=lambda other: device.models[other].used_at):
        if free >= device.models[number].size:
            break
        chosen.append(other)
        free += device.models[other].size
    return chosen if free >= device.models[number].size else []


def _up(device: Device, now: float) -> list[int]:
    return [n for n in device.resident() if device.models[n].ready(now) and not device.models[n].draining]


def lru(device: Device, number: int, now: float, free: float) -> Sequence[int]:
    """Plain least recently used: whoever asks gets it at once (llama-swap's way)."""
    return _oldest_first(device, number, free, _up(device, now))


def keep_alive(device: Device, number: int, now: float, free: float) -> Sequence[int]:
    """Idle ones only, the one that has been idle longest first; busy ones are waited for (Ollama's way)."""
    return _oldest_first(device, number, free, [n for n in _up(device, now) if not device.models[n].busy()])


def no_batching(device: Device, number: int, now: float, free: float) -> Sequence[int]:
    """Ours without its bounds: the cheapest goes at once, busy or just loaded."""
    ranked = sorted(_up(device, now), key=lambda n: device.models[n].rate.at(now) / device.models[n].size)
    chosen: list[int] = []
    for other in ranked:
        if free >= device.models[number].size:
            break
        chosen.append(other)
        free += device.models[other].size
    return chosen if free >= device.models[number].size else []


POLICIES: dict[str, Policy] = {"ours": ours, "lru": lru, "keep-alive": keep_alive, "no batching": no_batching}


def zipf(seed: int, models: int, per_s: float, hours: float) -> list[Arrival]:
    """Independent arrivals, popularity 1/rank."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(models)]
    now, found = 0.0, []
    while now < hours * HOUR_S:
        now += rng.expovariate(per_s)
        model = rng.choices(range(models), weights)[0]
        found.append(Arrival(now, model, rng.lognormvariate(0.7, 0.6)))
    return found


def bursty(seed: int, models: int, per_s: float, hours: float) -> list[Arrival]:
    """Sessions: somebody comes, asks one model many times with short pauses, and goes."""
    rng = random.Random(seed)
    now, found = 0.0, []
    while now < hours * HOUR_S:
        now += rng.expovariate(per_s / 20)
        model = min(models - 1, int(rng.expovariate(0.4)))
        at = now
        for _ in range(1 + int(rng.expovariate(1 / 20))):
            found.append(Arrival(at, model, rng.lognormvariate(0.7, 0.6)))
            at += rng.expovariate(1 / 4)
    return sorted(found, key=lambda arrival: arrival.at)


def alternating(seed: int, models: int, per_s: float, hours: float) -> list[Arrival]:
    """Two models that do not fit together, both asked for all the time."""
    rng = random.Random(seed)
    now, found = 0.0, []
    while now < hours * HOUR_S:
        now += rng.expovariate(per_s)
        found.append(Arrival(now, rng.randrange(2), rng.lognormvariate(0.7, 0.6)))
    return found


TRACES: dict[str, tuple[Callable[[int, int, float, float], list[Arrival]], Sequence[float], float, float]] = {
    # trace, sizes (seconds of loading), capacity, requests a second
    "zipf": (zipf, (4, 8, 3, 6, 10, 5, 12, 4, 7, 9), 20.0, 0.15),
    "bursty": (bursty, (4, 8, 3, 6, 10, 5, 12, 4, 7, 9), 20.0, 0.4),
    "alternating": (alternating, (8, 8), 10.0, 0.5),
}


def simulate(hours: float = 2.0, seeds: Sequence[int] = HELD_OUT) -> dict[str, dict[str, Result]]:
    """Every policy on every trace; the seeds' results together."""
    found: dict[str, dict[str, Result]] = {}
    for name, (make, sizes, capacity, per_s) in TRACES.items():
        traces = [make(seed, len(sizes), per_s, hours) for seed in seeds]
        found[name] = {}
        for policy_name, policy in POLICIES.items():
            results = [Device(sizes, capacity, policy).run(trace) for trace in traces]
            found[name][policy_name] = Result(
                waits=[wait for result in results for wait in result.waits],
                swaps=sum(result.swaps for result in results),
                moved=sum(result.moved for result in results),
                hours=sum(result.hours for result in results),
            )
    return found


def bench(setting: Setting) -> None:
    """As JSON lines: p99 wait and swaps an hour beside each peer's."""
    for trace, results in simulate(0.5 if setting.quick else 2.0).items():
        mine = results["ours"]
        for peer, result in results.items():
            if peer == "ours":
                continue
            note = f"bytes moved, in seconds of loading: {mine.moved:.0f} and {result.moved:.0f}"
            emit(
                Figure(
                    name=f"swap_{trace}_p99_wait",
                    value=mine.p99,
                    unit="s",
                    peer=peer,
                    peer_value=result.p99,
                    note=note,
                )
            )
            emit(
                Figure(
                    name=f"swap_{trace}_swaps_per_hour",
                    value=mine.swaps_per_hour,
                    unit="1/h",
                    peer=peer,
                    peer_value=result.swaps_per_hour,
                )
            )


def main() -> None:
    """A table for people."""
    for trace, results in simulate().items():
        for policy, result in results.items():
            say(
                f"{trace:12} {policy:12} p99 {result.p99:7.1f} s  mean {sum(result.waits) / len(result.waits):6.1f} s  "
                f"{result.swaps_per_hour:6.1f} swaps/h  moved {result.moved:7.0f}"
            )


if __name__ == "__main__":
    main()
