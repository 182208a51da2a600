"""What if: this model, this context, this many streams, this quantization: what does it take, and where does it fit?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inference.capacity.estimate import MemoryEstimate, estimate, kept_dtype_bytes, kv_cost
from inference.capacity.placement import DeviceRoom, Need, place, refusal

# Corrects a calculation for a kind of device by what earlier loads took there.
Correct = Callable[[MemoryEstimate, str], MemoryEstimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """What it would be on one device. ``streams``: with all its free memory as cache."""

    device: str
    kind: str
    needed_bytes: int
    free_bytes: int
    fits: bool
    streams: int | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The answer. ``streams`` is how many of the whole context the cache holds at once."""

    estimate: MemoryEstimate
    token_bytes: int | None
    stream_bytes: int | None
    streams: int | None
    fits: bool
    devices: tuple[str, ...]
    reasons: tuple[str, ...]
    fits_when_empty: bool
    on: tuple[OnDevice, ...]


def as_calculated(found: MemoryEstimate, _kind: str) -> MemoryEstimate:
    """Nothing was observed."""
    return found


def what_if(
    facts: Mapping[str, Any],
    rooms: Sequence[DeviceRoom],
    *,
    context_length: int | None = None,
    streams: int | None = None,
    kv_cache_bytes: int | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    tensor_parallel: int = 1,
    draft: Mapping[str, Any] | None = None,
    speculative_tokens: int = 0,
    correct: Correct = as_calculated,
) -> WhatIf:
    """The cache is ``kv_cache_bytes`` on each device, or what ``streams`` of the context take.

    ``draft``: the facts of the model that guesses so many ``speculative_tokens`` for it.
    """
    context = context_length or facts.get("context_length")
    cost = kv_cost(facts, kept_dtype_bytes(dtype), tensor_parallel, draft=draft)
    a_stream = cost.stream_bytes(context) if cost is not None and context else None
    if kv_cache_bytes is None:
        kv_cache_bytes = (a_stream or 0) * (streams or 1)

    def on(kind: str) -> MemoryEstimate:
        found = estimate(
            facts=facts,
            dtype=dtype,
            kv_cache_bytes=kv_cache_bytes,
            device_kind=kind,
            quantization=quantization,
            tensor_parallel=tensor_parallel,
            max_streams=streams or 1,
            draft=draft,
            speculative_tokens=speculative_tokens,
        )
        return correct(found, kind)

    estimates = {kind: on(kind) for kind in sorted({room.kind for room in rooms}) or ["cpu"]}
    need = Need(
        bytes=max(one.total_bytes for one in estimates.values()),
        by_kind={kind: one.total_bytes for kind, one in estimates.items()},
        devices=tensor_parallel,
        options={"quantization": quantization, "tensor_parallel": tensor_parallel},
    )
    placement = place(need, rooms)
    chosen = [room for room in rooms if room.id in placement.device_ids]
    shown = chosen[0].kind if chosen else next(iter(estimates))
    return WhatIf(
        estimate=estimates[shown],
        token_bytes=cost.token_bytes if cost else None,
        stream_bytes=a_stream,
        streams=kv_cache_bytes // a_stream if a_stream else None,
        fits=bool(chosen),
        devices=tuple(room.name for room in chosen),
        reasons=placement.reasons,
        fits_when_empty=bool(place(need, [replace(room, reserved_bytes=0) for room in rooms]).device_ids),
        on=tuple(_on(room, need, estimates[room.kind], a_stream) for room in rooms),
    )


def _on(room: DeviceRoom, need: Need, found: MemoryEstimate, a_stream: int | None) -> OnDevice:
    why = refusal(need, room)
    without_cache = found.total_bytes - found.kv_cache_bytes - found.state_bytes
    return OnDevice(
        device=room.name,
        kind=room.kind,
        needed_bytes=need.on(room),
        free_bytes=room.free_bytes,
        fits=why is None,
        streams=max(0, room.free_bytes - without_cache) // a_stream if a_stream else None,
        reason=why,
    )
