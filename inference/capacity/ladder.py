"""A replica's way down, rung by rung, and back. Pure: what each rung frees, what it keeps, how long the way back is.

    serving       has its weights and its KV cache on the device
    kv_released   the KV cache is given back, the weights stay
    asleep        the weights are in host memory (vLLM's sleep level 1)
    discarded     the weights are gone, the process is warm (level 2): they are read from files again
    stopped       no process; the files are on the node's disk
    remote        the files are in the store only

While its weights are on the device a replica goes down to any rung below. From ``asleep`` it wakes or ends: the device
would have nothing of a step to ``discarded``, and vLLM makes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SERVING, KV_RELEASED, ASLEEP, DISCARDED, STOPPED, REMOTE = (
    "serving",
    "kv_released",
    "asleep",
    "discarded",
    "stopped",
    "remote",
)
LADDER = (SERVING, KV_RELEASED, ASLEEP, DISCARDED, STOPPED, REMOTE)
# On these a replica keeps its process, and some memory.
RESTING = (KV_RELEASED, ASLEEP, DISCARDED)
# The ways from a rung to others that keep the process.
DEEPER: Mapping[str, tuple[str, ...]] = {SERVING: RESTING, KV_RELEASED: (ASLEEP, DISCARDED)}
# Of a load from files, until the way back from a rung was measured: mapping a cache again, copying weights over the
# bus, reading weights without starting a process.
SHARE_OF_A_LOAD = {SERVING: 0.0, KV_RELEASED: 0.02, ASLEEP: 0.1, DISCARDED: 0.5, STOPPED: 1.0, REMOTE: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a serving replica has of each of its devices, in bytes."""

    total_bytes: int
    weights_bytes: int
    kv_cache_bytes: int

    def freed_by(self, rung: str) -> int:
        """What it gives back on this rung."""
        found = {
            SERVING: 0,
            KV_RELEASED: self.kv_cache_bytes,
            ASLEEP: self.kv_cache_bytes + self.weights_bytes,
            DISCARDED: self.kv_cache_bytes + self.weights_bytes,
        }.get(rung, self.total_bytes)
        return min(found, self.total_bytes)

    def host_bytes(self, rung: str) -> int:
        """What it takes of host memory there."""
        return self.weights_bytes if rung == ASLEEP else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One possible step."""

    rung: str
    freed_bytes: int
    host_bytes: int
    back_s: float


def back_s(rung: str, load_s: float, measured: Mapping[str, float]) -> float:
    """Seconds from a rung to serving: measured, or a share of a load."""
    return measured.get(rung, SHARE_OF_A_LOAD[rung] * load_s)


def steps_down(
    ladder: Sequence[str], at: str, held: Held, *, load_s: float, measured: Mapping[str, float]
) -> list[Step]:
    """Every way down from a rung, the least deep first. ``stopped`` is always one of them."""
    possible = [rung for rung in DEEPER.get(at, ()) if rung in ladder]
    if LADDER.index(at) < LADDER.index(STOPPED):
        possible.append(STOPPED)
    return [
        Step(
            rung=rung,
            freed_bytes=held.freed_by(rung) - held.freed_by(at),
            host_bytes=held.host_bytes(rung),
            back_s=back_s(rung, load_s, measured),
        )
        for rung in possible
    ]


def step_down(
    ladder: Sequence[str],
    at: str,
    held: Held,
    *,
    needed_bytes: int,
    host_free_bytes: int,
    load_s: float,
    measured: Mapping[str, float] | None = None,
) -> Step | None:
    """The step from which it is soonest back, of those that free enough and that the host has room for.

    Where no step frees enough, the one that frees most; None below ``stopped``.
    """
    steps = steps_down(ladder, at, held, load_s=load_s, measured=measured or {})
    fitting = [step for step in steps if step.host_bytes <= host_free_bytes]
    enough = [step for step in fitting if step.freed_bytes >= needed_bytes]
    if enough:
        return min(enough, key=lambda step: (step.back_s, LADDER.index(step.rung)))
    return max(fitting, key=lambda step: step.freed_bytes, default=None)


def bytes_to_wake(at: str, held: Held, reserved_bytes: int) -> int:
    """What its device must have free for it to serve again."""
    return 0 if at == SERVING else max(0, held.total_bytes - reserved_bytes)
