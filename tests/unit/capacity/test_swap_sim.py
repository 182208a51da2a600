"""The simulator on seeds that the policy was not tuned on; its outcome is determined by them."""

from __future__ import annotations

from tests.bench.swap_sim import POLICIES, TRACES, simulate

# Independent arrivals leave little to choose, and keep-alive is as good as ours where demand comes in sessions.
NEARLY = 1.03
CLEARLY = 0.9


def test_ours_waits_less_where_demand_has_a_shape_and_swaps_no_more_than_lru_and_keep_alive() -> None:
    found = simulate()

    assert set(found) == set(TRACES)
    for trace, results in found.items():
        ours = results["ours"]
        assert {len(result.waits) for result in results.values()} == {len(ours.waits)}
        for peer in POLICIES.keys() - {"ours"}:
            close = trace == "zipf" or peer == "keep-alive"
            assert ours.p99 <= (NEARLY if close else CLEARLY) * results[peer].p99
        assert ours.swaps <= results["lru"].swaps
        assert ours.swaps <= 1.005 * results["keep-alive"].swaps
