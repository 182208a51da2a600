"""A simulator of swapping: our choice of victims, turns and batches against what others do, on the same traces.

``python -m tests.bench.swap_sim [FIRST LAST]`` prints a table, of the held-out seeds or of these;
``make bench ARGS="--only swap_sim"`` prints JSON lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting
from tests.bench.swap_device import Device, Policy, Result, together
from tests.bench.swap_policies import LRU, Clairvoyant, KeepAlive, LeastAskedAByte, Ollama, Ours
from tests.bench.swap_traces import TRACES, Arrival

# The policy's constants were chosen on seeds 1 to 10 and 201 to 260: it is judged on others.
HELD_OUT = tuple(range(101, 121))

POLICIES: dict[str, Callable[[Sequence[Arrival]], Policy]] = {
    "ours": lambda _: Ours(),
    "lru": lambda _: LRU(),
    "keep-alive": lambda _: KeepAlive(),
    "ollama": lambda _: Ollama(),
    "no batching": lambda _: Ours(max_wait_s=0.0, min_residency_s=0.0),
    "least asked": lambda _: LeastAskedAByte(),
    "clairvoyant": Clairvoyant,
}
# It knows the future: what could be gained, no peer.
BOUND = "clairvoyant"


def simulate(
    hours: float = 2.0,
    seeds: Sequence[int] = HELD_OUT,
    policies: Iterable[str] = POLICIES,
    traces: Iterable[str] = TRACES,
) -> dict[str, dict[str, list[Result]]]:
    """Every policy on every trace, seed by seed."""
    found: dict[str, dict[str, list[Result]]] = {}
    for name in traces:
        make, sizes, capacity, per_s = TRACES[name]
        arrivals = [make(seed, len(sizes), per_s, hours) for seed in seeds]
        found[name] = {
            policy: [Device(sizes, capacity, POLICIES[policy](trace)).run(trace) for trace in arrivals]
            for policy in policies
        }
    return found


def bench(setting: Setting) -> None:
    """As JSON lines: p99 wait and swaps an hour beside each peer's."""
    for trace, results in simulate(0.5 if setting.quick else 2.0).items():
        mine = together(results["ours"])
        for peer in [name for name in POLICIES if name != "ours"]:
            result = together(results[peer])
            emit(
                Figure(
                    name=f"swap_{trace}_p99_wait",
                    value=mine.p99,
                    unit="s",
                    peer=peer,
                    peer_value=result.p99,
                    note=f"bytes moved, in seconds of loading: {mine.moved:.0f} and {result.moved:.0f}",
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


def p99_less_by(mine: Sequence[Result], others: Sequence[Result], rounds: int = 1000) -> tuple[float, float]:
    """How much lower the first one's p99 is than the other's on the same seeds, in seconds: 95 % of the possible.

    By the paired bootstrap (Efron 1979): seeds are drawn with replacement, each with both of its results.
    """
    rng = np.random.default_rng(0)
    pairs = [(np.asarray(a.waits), np.asarray(b.waits)) for a, b in zip(mine, others, strict=True)]
    found = []
    for _ in range(rounds):
        drawn = [pairs[at] for at in rng.integers(len(pairs), size=len(pairs))]
        one, other = (np.concatenate(waits) for waits in zip(*drawn, strict=True))
        found.append(float(np.percentile(other, 99) - np.percentile(one, 99)))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def main(seeds: Sequence[int] = HELD_OUT) -> None:
    """A table for people."""
    for trace, results in simulate(seeds=seeds).items():
        mine = results["ours"]
        for policy, found in results.items():
            result = together(found)
            pairs = list(zip(mine, found, strict=True))
            low, high = p99_less_by(mine, found)
            say(
                f"{trace:12} {policy:12} p99 {result.p99:7.1f} s  mean {result.mean:6.1f} s  "
                f"{result.swaps_per_hour:6.1f} swaps/h  moved {result.moved / result.hours:6.0f}/h  "
                f"ours less by {low:+.2f} to {high:+.2f} s, better on {sum(a.p99 < b.p99 for a, b in pairs)}, "
                f"fewer swaps on {sum(a.swaps < b.swaps for a, b in pairs)} of {len(pairs)}"
            )


if __name__ == "__main__":
    main(range(int(sys.argv[1]), int(sys.argv[2]) + 1) if len(sys.argv) == 3 else HELD_OUT)
