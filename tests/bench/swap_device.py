"""One device on which models are swapped, in simulated time: what every policy has to live with.

It holds a few of the models. A load takes as long as the model's bytes at a given rate, and loads come one after the
other (as in vLLM, Ollama and the product). A request takes as long as its tokens. A model that is drained starts
nothing new, and goes when what runs in it is done.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from inference.capacity.pauses import Pauses
from tests.bench.swap_traces import HOUR_S, Arrival

LOAD_BYTES_PER_S = 1.0  # sizes are in units of one second of loading
STREAMS = 8  # requests that one model runs at once
TICK_S = 0.5


@dataclass(slots=True)
class Model:
    """One model in the simulation."""

    number: int
    size: float
    queue: deque[Arrival] = field(default_factory=deque)
    ends: list[float] = field(default_factory=list)  # of what runs, a heap
    up_at: float | None = None  # when its load is done; None: not up
    draining: bool = False
    used_at: float = 0.0
    idle_at: float = 0.0  # its last work was done
    asked_at: float | None = None
    pauses: Pauses = field(default_factory=Pauses)

    @property
    def load_s(self) -> float:
        return self.size / LOAD_BYTES_PER_S

    @property
    def busy(self) -> bool:
        return bool(self.queue or self.ends)

    def ready(self, now: float) -> bool:
        return self.up_at is not None and self.up_at <= now


class Policy(Protocol):
    """Who is loaded, and who goes for it."""

    def arrive(self, device: Device, arrival: Arrival, now: float) -> None:
        """A request came."""

    def step(self, device: Device, now: float) -> None:
        """Once a tick while somebody waits."""


@dataclass(slots=True)
class Result:
    """What a policy made of a trace, or of several."""

    waits: list[float]
    swaps: int
    moved: float
    hours: float

    @property
    def p99(self) -> float:
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    @property
    def mean(self) -> float:
        return sum(self.waits) / len(self.waits)

    @property
    def swaps_per_hour(self) -> float:
        return self.swaps / self.hours


def together(results: Sequence[Result]) -> Result:
    """Several traces as one."""
    return Result(
        waits=[wait for result in results for wait in result.waits],
        swaps=sum(result.swaps for result in results),
        moved=sum(result.moved for result in results),
        hours=sum(result.hours for result in results),
    )


class Device:
    """Runs a trace under a policy."""

    def __init__(self, sizes: Sequence[float], capacity: float, policy: Policy) -> None:
        self.models = [Model(number, size) for number, size in enumerate(sizes)]
        self.capacity = capacity
        self.policy = policy
        self.pauses = Pauses()
        self.loads_until = 0.0
        self.held: deque[Arrival] = deque()  # by the policy, before any model's queue
        self._waits: list[float] = []
        self._swaps = 0
        self._moved = 0.0

    @property
    def free(self) -> float:
        return self.capacity - sum(model.size for model in self.models if model.up_at is not None)

    @property
    def leaving(self) -> float:
        return sum(model.size for model in self.models if model.draining)

    def run(self, trace: Sequence[Arrival]) -> Result:
        """Until the last request is answered."""
        coming = deque(trace)
        now = 0.0
        while coming or self.held or any(model.busy for model in self.models):
            while coming and coming[0].at <= now:
                arrival = coming.popleft()
                model = self.models[arrival.model]
                if not model.busy:
                    for pauses in (model.pauses, self.pauses):
                        pauses.ended(now - model.idle_at)
                self.policy.arrive(self, arrival, now)
            self.serve(now)
            self.policy.step(self, now)
            now = self._next(now, coming)
        return Result(self._waits, self._swaps, self._moved, now / HOUR_S)

    def enqueue(self, arrival: Arrival, now: float) -> None:
        model = self.models[arrival.model]
        model.queue.append(arrival)
        model.used_at = now

    def load(self, model: Model, now: float) -> None:
        """Its memory is taken now; it loads when the loads before it are done."""
        self.loads_until = max(now, self.loads_until) + model.load_s
        model.up_at = self.loads_until
        model.asked_at = None
        self._swaps += 1
        self._moved += model.size

    def serve(self, now: float) -> None:
        """What is done leaves, what is up takes what waits."""
        for model in self.models:
            while model.ends and model.ends[0] <= now:
                heapq.heappop(model.ends)
                if not model.busy:
                    model.idle_at = now
            if model.ready(now) and not model.draining:
                while model.queue and len(model.ends) < STREAMS:
                    arrival = model.queue.popleft()
                    self._waits.append(now - arrival.at)
                    heapq.heappush(model.ends, now + arrival.service_s)
                    model.used_at = now
            if model.draining and not model.ends:
                model.up_at, model.draining = None, False
            asked = bool(model.queue) and model.up_at is None
            model.asked_at = (now if model.asked_at is None else model.asked_at) if asked else None

    def _next(self, now: float, coming: deque[Arrival]) -> float:
        """The next tick at which anything can happen."""
        waiting = any(model.asked_at is not None or model.draining for model in self.models)
        if waiting or self.held:
            return now + TICK_S
        events = [coming[0].at] if coming else []
        events += [model.ends[0] for model in self.models if model.ends]
        events += [model.up_at for model in self.models if model.up_at is not None and model.up_at > now]
        return max(now + TICK_S, math.ceil(min(events, default=now) / TICK_S) * TICK_S)
