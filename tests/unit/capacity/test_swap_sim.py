"""The simulator on seeds that the policy was not tuned on; its outcome is determined by them."""

from __future__ import annotations

from tests.bench.swap_sim import POLICIES, TRACES, simulate

# Independent arrivals leave little to choose: there nobody's p99 differs by more than a few percent.
NEARLY = 1.03


def test_ours_waits_less_where_demand_has_a_shape_and_swaps_no_more_than_lru_and_keep_alive() -> None:
    found = simulate()

    assert set(found) == set(TRACES)
    for trace, results in found.items():
        ours = results["ours"]
        assert {len(result.waits) for result in results.values()} == {len(ours.waits)}
        for peer in POLICIES.keys() - {"ours"}:
            assert ours.p99 <= (NEARLY if trace == "zipf" else 1.0) * results[peer].p99
        assert ours.swaps <= results["lru"].swaps
        assert ours.swaps <= 1.005 * results["keep-alive"].swaps
