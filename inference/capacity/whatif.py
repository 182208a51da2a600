"""What if: this model, this context, this many streams, this quantization: what does it take, and where does it fit?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.capacity.estimate import MemoryEstimate, estimate, kv_cost
from inference.capacity.placement import DeviceRoom, place


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The answer. ``streams`` is how many of the whole context the cache holds at once."""

    estimate: MemoryEstimate
    token_bytes: int | None
    stream_bytes: int | None
    streams: int | None
    fits: bool
    device: str | None
    reasons: tuple[str, ...]
    fits_when_empty: bool


def what_if(
    facts: Mapping[str, Any],
    devices: Sequence[DeviceRoom],
    *,
    context_length: int | None = None,
    streams: int | None = None,
    kv_cache_bytes: int | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    tensor_parallel: int = 1,
    device_kind: str = "cpu",
) -> WhatIf:
    """The cache is ``kv_cache_bytes``, or what ``streams`` of the context take."""
    context = context_length or facts.get("context_length")
    cost = kv_cost(facts, 4.0 if dtype == "float32" else 2.0)
    a_stream = cost.stream_bytes(context) if cost is not None and context else None
    if kv_cache_bytes is None:
        kv_cache_bytes = (a_stream or 0) * (streams or 1)
    found = estimate(
        facts=facts,
        dtype=dtype,
        kv_cache_bytes=-(-kv_cache_bytes // tensor_parallel),
        device_kind=device_kind,
        quantization=quantization,
        tensor_parallel=tensor_parallel,
        max_streams=streams or 1,
    )
    placement = place(found.total_bytes, devices)
    names = {device.id: device.name for device in devices}
    return WhatIf(
        estimate=found,
        token_bytes=cost.token_bytes if cost else None,
        stream_bytes=a_stream,
        streams=kv_cache_bytes // a_stream if a_stream else None,
        fits=placement.device_id is not None,
        device=names.get(placement.device_id) if placement.device_id is not None else None,
        reasons=placement.reasons,
        fits_when_empty=any(device.alive and device.budget_bytes >= found.total_bytes for device in devices),
    )
