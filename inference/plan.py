"""A what-if of a version for REST, admin and command."""

from __future__ import annotations

from typing import Any

from inference.capacity.whatif import what_if
from inference.memory import device_rooms
from inference.models import Device
from mmserve.errors import InvalidRequest
from registry.models import ModelVersion


def plan_of(version: ModelVersion, **asked: Any) -> dict[str, Any]:
    """Parts in bytes, bytes a token, streams, and where it would fit now or on an empty device."""
    if not version.facts:
        raise InvalidRequest(f"{version.served_id} is {version.state}: nothing is known of its files yet.")
    has_gpu = Device.objects.exclude(kind="cpu").exists()
    found = what_if(version.facts, device_rooms(), device_kind="gpu" if has_gpu else "cpu", **asked)
    return {
        "id": version.served_id,
        "total_bytes": found.estimate.total_bytes,
        "parts": found.estimate.parts(),
        "kv_bytes_a_token": found.token_bytes,
        "kv_bytes_a_stream": found.stream_bytes,
        "streams": found.streams,
        "fits": found.fits,
        "device": found.device,
        "fits_when_empty": found.fits_when_empty,
        "reasons": list(found.reasons),
    }
