"""What loads took corrects what the next one will."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.calibration import Observed, calibrated, grouped, off_by
from inference.capacity.estimate import MIB, MemoryEstimate

CALCULATED = MemoryEstimate(
    weights_bytes=1000,
    kv_cache_bytes=500,
    state_bytes=20,
    activations_bytes=100,
    cuda_graphs_bytes=40,
    context_bytes=60,
    runtime_bytes=200,
)
MEASURED = {"weights": 1010, "kv_cache": 515, "runtime": 350}


def seen(full: bool = False, **change: int) -> Observed:
    return Observed(measured={**MEASURED, **change}, calculated=CALCULATED.parts(), batch_was_full=full)


def test_the_same_thing_again_takes_what_it_took() -> None:
    found = calibrated(CALCULATED, same=seen(activations=70, full=True))

    assert grouped(found.parts()) == {**MEASURED, "activations": 70}
    assert found.total_bytes == 1010 + 515 + 350 + 70
    assert found.calibrated


def test_a_drafts_weights_are_as_they_were_measured() -> None:
    calculated = replace(CALCULATED, draft_weights_bytes=90)
    found = calibrated(calculated, same=seen(draft_weights=100, full=True))
    assert (found.weights_bytes, found.draft_weights_bytes) == (1010, 100)
    assert off_by(found.parts(), {**MEASURED, "draft_weights": 100}) == 0.0
    assert off_by(calculated.parts(), {"weights": 1000, "draft_weights": 100}) == pytest.approx(-10 / 1100)


def test_what_no_full_batch_has_shown_stays_reserved() -> None:
    assert calibrated(CALCULATED, same=seen(activations=70)).activations_bytes == 100
    assert calibrated(CALCULATED, same=seen(activations=130)).activations_bytes == 130
    assert calibrated(CALCULATED, same=seen()).activations_bytes == 100


def test_of_other_options_only_the_process_is_believed() -> None:
    found = calibrated(CALCULATED, same_version=seen())

    assert grouped(found.parts()) == {**grouped(CALCULATED.parts()), "runtime": 350}
    assert not found.calibrated


def test_other_versions_can_only_raise_it() -> None:
    higher = calibrated(CALCULATED, others=[seen(runtime=600), seen(runtime=450), seen(runtime=300)])
    assert grouped(higher.parts())["runtime"] == 450
    assert calibrated(CALCULATED, others=[seen(runtime=30)]) == CALCULATED
    assert calibrated(CALCULATED) == CALCULATED


def test_the_error_is_over_the_parts_that_were_measured() -> None:
    assert off_by({"weights": 110, "activations": 50}, {"weights": 100}) == pytest.approx(0.1)
    assert off_by({"weights": 110, "activations": 50}, {"weights": 100, "activations": 100}) == pytest.approx(
        -0.2
    )
    assert off_by(CALCULATED.parts(), {}) == 0.0


@given(st.lists(st.integers(0, 10**6 * MIB), min_size=4, max_size=4))
def test_after_one_load_with_a_full_batch_nothing_is_left_to_err(sizes: list[int]) -> None:
    measured = dict(zip(("weights", "kv_cache", "activations", "runtime"), sizes, strict=True))
    measured["kv_cache"] = max(measured["kv_cache"], CALCULATED.state_bytes)
    same = Observed(measured=measured, calculated={}, batch_was_full=True)

    assert off_by(calibrated(CALCULATED, same=same).parts(), measured) == 0.0
