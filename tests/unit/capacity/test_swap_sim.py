"""The simulator on seeds that the policy was not tuned on; its outcome is determined by them."""

from __future__ import annotations

import pytest

from tests.bench.swap_device import Device, Result, together
from tests.bench.swap_policies import LRU, KeepAlive, Ollama
from tests.bench.swap_sim import BOUND, HELD_OUT, POLICIES, simulate
from tests.bench.swap_traces import TRACES, Arrival

# Whose rule is ours without batching has nothing to lose where arrivals are independent.
NO_WORSE = 1.005


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Result]]:
    results = simulate(policies=POLICIES.keys() - {"ollama", BOUND})
    results["bursty"] |= simulate(policies=["ollama"], traces=["bursty"])["bursty"]
    results["zipf"] |= simulate(policies=["ollama"], traces=["zipf"])["zipf"]
    return {
        trace: {policy: together(of_seeds) for policy, of_seeds in of_policies.items()}
        for trace, of_policies in results.items()
    }


@pytest.mark.parametrize("trace", TRACES)
def test_ours_waits_no_longer_than_any_peer_and_swaps_less(
    found: dict[str, dict[str, Result]], trace: str
) -> None:
    ours = found[trace]["ours"]
    for peer in found[trace].keys() - {"ours", BOUND}:
        result = found[trace][peer]
        assert len(result.waits) == len(ours.waits), "every request is answered"
        assert ours.p99 <= NO_WORSE * result.p99, peer
        assert ours.swaps_per_hour < result.swaps_per_hour, peer


def test_batches_halve_the_wait_of_two_that_alternate(found: dict[str, dict[str, Result]]) -> None:
    results = found["alternating"]
    assert results["ours"].p99 < 0.5 * results["no batching"].p99
    assert results["ours"].p99 < 0.5 * results["lru"].p99


def waits(
    policy: object, *arrivals: tuple[float, int], sizes: tuple[float, ...] = (4.0, 4.0, 4.0)
) -> list[float]:
    """Of requests that take a second each, where two of three models fit."""
    trace = [Arrival(at, model, 1.0) for at, model in arrivals]
    return Device(sizes, 8.0, policy).run(trace).waits  # type: ignore[arg-type]


def test_loads_come_one_after_the_other() -> None:
    assert waits(LRU(), (0.0, 0), (0.0, 1)) == [4.0, 8.0]


def test_ollama_makes_a_request_for_what_is_up_wait_behind_one_that_is_not() -> None:
    arrivals = [(0.0, 0), (0.0, 1), (20.0, 2), (20.0, 0)]
    assert waits(KeepAlive(), *arrivals)[2:] != waits(Ollama(), *arrivals)[2:]
    # Model 0 is the first by name that is idle: it is unloaded for 2, and the request for it loads it again.
    assert waits(Ollama(), *arrivals) == [4.0, 8.0, 4.0, 8.0]


def test_a_simulation_is_determined_by_its_seed() -> None:
    first, again = (simulate(0.1, HELD_OUT[:1], ["ours"]) for _ in range(2))
    assert [result["ours"][0].waits for result in first.values()] == [
        result["ours"][0].waits for result in again.values()
    ]
