"""What earlier loads took corrects what the next one will. Pure.

The same thing again (version, quantization, options, kind of device) takes what it took. The same version with other
options has the process around it in common. Of other versions only this is believed: that the calculation was too low.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from inference.capacity.estimate import MemoryEstimate

# What an engine can tell apart: its states lie in the cache, and a CUDA context is nobody's part but the process's.
MEASURED = {
    "weights": ("weights",),
    "draft_weights": ("draft_weights",),
    "kv_cache": ("kv_cache", "state"),
    "activations": ("activations",),
    "runtime": ("runtime", "context", "cuda_graphs"),
}
# Most engines have none of it.
ONLY_WHERE_IT_IS = ("draft_weights",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One earlier load: bytes by measured part, and what had been calculated for it without any correction."""

    measured: Mapping[str, int]
    calculated: Mapping[str, int]
    batch_was_full: bool = False


def calibrated(
    found: MemoryEstimate,
    *,
    same: Observed | None = None,
    same_version: Observed | None = None,
    others: Sequence[Observed] = (),
) -> MemoryEstimate:
    """The estimate, corrected by the nearest of what was observed."""
    if same is not None:
        measured = same.measured
        seen = measured.get("activations", 0)
        return replace(
            _with_runtime(found, measured["runtime"]),
            weights_bytes=measured["weights"],
            draft_weights_bytes=measured.get("draft_weights", 0),
            kv_cache_bytes=max(0, measured["kv_cache"] - found.state_bytes),
            activations_bytes=seen if same.batch_was_full else max(seen, found.activations_bytes),
            calibrated=True,
        )
    if same_version is not None:
        return _with_runtime(found, same_version.measured["runtime"])
    ratios = [
        one.measured["runtime"] / calculated
        for one in others
        if (calculated := grouped(one.calculated)["runtime"]) > 0
    ]
    if not ratios or (factor := median(ratios)) <= 1.0:
        return found
    return _with_runtime(found, int(factor * grouped(found.parts())["runtime"]))


def grouped(parts: Mapping[str, int]) -> dict[str, int]:
    """An estimate's parts as an engine can measure them; a draft's where there is one."""
    found = {name: sum(parts.get(one, 0) for one in members) for name, members in MEASURED.items()}
    return {name: size for name, size in found.items() if size or name not in ONLY_WHERE_IT_IS}


def off_by(predicted: Mapping[str, int], measured: Mapping[str, int]) -> float:
    """The error as a share of what was measured, over the parts that were; positive: more was predicted."""
    expected = grouped(predicted)
    taken = sum(measured.values())
    return (sum(expected.get(name, 0) for name in measured) - taken) / taken if taken else 0.0


def _with_runtime(found: MemoryEstimate, runtime: int) -> MemoryEstimate:
    """All that is neither weights, cache nor batch, as one measured figure."""
    fixed = found.context_bytes + found.cuda_graphs_bytes
    if fixed > runtime:
        return replace(found, context_bytes=0, cuda_graphs_bytes=0, runtime_bytes=runtime)
    return replace(found, runtime_bytes=runtime - fixed)
