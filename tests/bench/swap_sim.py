"""A simulator of swapping: our choice of victims, turns and batches against what others do, on the same traces.

``python -m tests.bench.swap_sim`` prints a table; ``make bench ARGS="--only swap_sim"`` prints JSON lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting
from tests.bench.swap_device import Device, Policy, Result, together
from tests.bench.swap_policies import LRU, Clairvoyant, KeepAlive, LeastAskedAByte, Ollama, Ours
from tests.bench.swap_traces import TRACES, Arrival

# The policy's constants were chosen on seeds 1 to 10: it is judged on others.
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


def main() -> None:
    """A table for people."""
    for trace, results in simulate().items():
        mine = results["ours"]
        for policy, found in results.items():
            result = together(found)
            pairs = list(zip(mine, found, strict=True))
            say(
                f"{trace:12} {policy:12} p99 {result.p99:7.1f} s  mean {result.mean:6.1f} s  "
                f"{result.swaps_per_hour:6.1f} swaps/h  moved {result.moved / result.hours:6.0f}/h  "
                f"ours better on {sum(a.p99 < b.p99 for a, b in pairs)}, "
                f"fewer swaps on {sum(a.swaps < b.swaps for a, b in pairs)} of {len(pairs)}"
            )


if __name__ == "__main__":
    main()
