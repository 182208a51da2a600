"""The policies that are compared in the simulator of swapping: the product's own, and its peers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from inference.capacity.swap import LEAD_S, SOON_S, Resident, Wanted, choose_victims
from tests.bench.swap_device import Device, Model
from tests.bench.swap_traces import Arrival

MAX_WAIT_S = 30.0
MIN_RESIDENCY_S = 10.0


class ByTurns:
    """Requests wait at their model; one model after the other gets its room, when its turn at the loads comes.

    All but Ollama's. For the peers this is a gift: plain LRU and keep-alive would take their room as soon as they are
    asked for, and then hold it without using it while others load.
    """

    def arrive(self, device: Device, arrival: Arrival, now: float) -> None:
        device.enqueue(arrival, now)

    def step(self, device: Device, now: float) -> None:
        for model in self.order([model for model in device.models if model.asked_at is not None], now):
            if device.free >= model.size:
                device.load(model, now)
                continue
            if device.loads_until - now > LEAD_S:
                return
            coming = device.free + device.leaving
            if coming < model.size:
                for victim in self.victims(device, model, now, coming):
                    victim.draining = True
            return  # the room comes by itself: nobody behind may take it

    def order(self, asking: list[Model], now: float) -> list[Model]:
        return sorted(asking, key=lambda model: model.asked_at or 0.0)

    def victims(self, device: Device, model: Model, now: float, free: float) -> Sequence[Model]:
        """Who goes so that it fits, or nobody: it waits."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Ours(ByTurns):
    """The product's own choice; without its bounds: no batching."""

    max_wait_s: float = MAX_WAIT_S
    min_residency_s: float = MIN_RESIDENCY_S

    def order(self, asking: list[Model], now: float) -> list[Model]:
        return sorted(asking, key=lambda model: self._wanted(model, now).turn)

    def victims(self, device: Device, model: Model, now: float, free: float) -> Sequence[Model]:
        residents = [
            self._resident(device, other, now)
            for other in device.models
            if other.ready(now) and not other.draining
        ]
        found = choose_victims(self._wanted(model, now), residents, int(free * 1000))
        return [device.models[int(name)] for name in found.victims]

    def soon(self, device: Device, model: Model, now: float, within_s: float) -> float:
        """The probability that it is used within so long."""
        idle_s = 0.0 if model.busy else now - model.idle_at
        return model.pauses.again(idle_s, within_s, device.pauses)

    def _wanted(self, model: Model, now: float) -> Wanted:
        return Wanted(
            bytes=int(model.size * 1000),
            jobs=len(model.queue),
            waited_s=0.0 if model.asked_at is None else now - model.asked_at,
            max_wait_s=self.max_wait_s,
            load_s=model.load_s,
        )

    def _resident(self, device: Device, model: Model, now: float) -> Resident:
        return Resident(
            id=str(model.number),
            bytes=int(model.size * 1000),
            resident_s=now - (now if model.up_at is None else model.up_at),
            min_residency_s=self.min_residency_s,
            busy=model.busy,
            soon=self.soon(device, model, now, SOON_S),
            missed=self.soon(device, model, now, model.load_s),
            reload_s=model.load_s,
        )


class Clairvoyant(Ours):
    """Ours, if it knew when each model is asked for next: how much better estimates could make it."""

    def __init__(self, trace: Sequence[Arrival]) -> None:
        super().__init__()
        found: dict[int, list[float]] = {}
        for arrival in trace:
            found.setdefault(arrival.model, []).append(arrival.at)
        object.__setattr__(self, "_asked", found)

    def soon(self, device: Device, model: Model, now: float, within_s: float) -> float:
        times: list[float] = self._asked.get(model.number, [])  # type: ignore[attr-defined]
        at = bisect_right(times, now)
        return within_s / (within_s + times[at] - now) if at < len(times) else 0.0


class LRU(ByTurns):
    """The least recently used goes at once, busy or not: what runs in it is finished first."""

    def victims(self, device: Device, model: Model, now: float, free: float) -> Sequence[Model]:
        up = [other for other in device.models if other.ready(now) and not other.draining]
        return until_enough(sorted(up, key=lambda other: other.used_at), model.size - free)


class KeepAlive(ByTurns):
    """Idle ones only, the one whose keep-alive ends first; busy ones are waited for.

    Ollama's rule without Ollama's queue: a model does not wait behind another's requests.
    """

    def victims(self, device: Device, model: Model, now: float, free: float) -> Sequence[Model]:
        up = [other for other in device.models if other.ready(now) and not other.draining]
        idle = [other for other in up if not other.busy]
        return until_enough(sorted(idle, key=lambda other: other.used_at), model.size - free)


class LeastAskedAByte(ByTurns):
    """Whoever is asked for least often a byte goes at once, busy or just loaded."""

    MEMORY_S = 120.0

    def __init__(self) -> None:
        self._rates: dict[int, tuple[float, float]] = {}

    def arrive(self, device: Device, arrival: Arrival, now: float) -> None:
        super().arrive(device, arrival, now)
        self._rates[arrival.model] = (self._rate(arrival.model, now) + 1 / self.MEMORY_S, now)

    def victims(self, device: Device, model: Model, now: float, free: float) -> Sequence[Model]:
        up = [other for other in device.models if other.ready(now) and not other.draining]
        ranked = sorted(up, key=lambda other: self._rate(other.number, now) / other.size)
        return until_enough(ranked, model.size - free)

    def _rate(self, number: int, now: float) -> float:
        rate, at = self._rates.get(number, (0.0, now))
        return rate * math.exp(-(now - at) / self.MEMORY_S)


class Ollama:
    """What Ollama's scheduler does (server/sched.go: processPending, findRunnerToUnload, processCompleted).

    One queue of requests, first come first served: "Block other requests until we get this pending request running".
    The first one is given to its runner if that is up, waits for it if it loads, and is loaded if it fits. Else a
    runner is expired: of those with the shortest keep-alive (the same five minutes for all; then by name) the first
    idle one, or if none is idle the first, which answers what was given to it and goes. Meanwhile "we're queueing up
    all incoming requests, even if they were for a different model that's loaded and not scheduled to be removed".

    Left out in its favour: at most three models a GPU, the wait until the driver reports the memory, a queue of 512.
    """

    KEEP_ALIVE_S = 300.0

    def __init__(self) -> None:
        self._expired: Model | None = None

    def arrive(self, device: Device, arrival: Arrival, now: float) -> None:
        device.held.append(arrival)

    def step(self, device: Device, now: float) -> None:
        for model in device.models:
            if model.ready(now) and not model.busy and now - model.idle_at >= self.KEEP_ALIVE_S:
                model.up_at = None
        if self._expired is not None and not self._expired.busy:
            self._expired.up_at = self._expired = None
        while device.held and self._dispatch(device, device.held[0], now):
            device.held.popleft()
        device.serve(now)

    def _dispatch(self, device: Device, arrival: Arrival, now: float) -> bool:
        """Gives the first request to its runner, or makes room for it; False: all wait."""
        model = device.models[arrival.model]
        up = [other for other in device.models if other.up_at is not None]
        if self._expired is not None:
            return False
        if model.ready(now):
            device.enqueue(arrival, now)
            return True
        if not all(other.ready(now) for other in up):
            return False
        while device.free < model.size:
            victim = next((other for other in up if not other.busy), up[0])
            if victim.busy:
                self._expired = victim
                return False
            victim.up_at = None
            up.remove(victim)
        device.load(model, now)
        device.enqueue(arrival, now)
        return True


def until_enough(ranked: Sequence[Model], needed: float) -> Sequence[Model]:
    """The first of them that free enough; nobody if all of them do not."""
    chosen: list[Model] = []
    for model in ranked:
        if needed <= 0:
            break
        chosen.append(model)
        needed -= model.size
    return chosen if needed <= 0 else []
