"""A what-if of a version for REST, admin and command."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from inference.calibration import corrected
from inference.capacity.estimate import MemoryEstimate
from inference.capacity.whatif import what_if
from inference.memory import device_rooms
from inference.models import Deployment
from mmserve.errors import InvalidRequest
from registry.models import ModelVersion


def plan_of(version: ModelVersion, **asked: Any) -> dict[str, Any]:
    """Parts in bytes, bytes a token, streams, and where it would fit now or on an empty device."""
    if not version.facts:
        raise InvalidRequest(f"{version.served_id} is {version.state}: nothing is known of its files yet.")
    draft = _draft(version, asked)

    def correct(found: MemoryEstimate, kind: str) -> MemoryEstimate:
        draft.kv_cache_bytes = found.kv_cache_bytes + found.state_bytes
        return corrected(found, draft, kind)

    found = what_if(version.facts, device_rooms(), correct=correct, **asked)
    return {
        "id": version.served_id,
        "total_bytes": found.estimate.total_bytes,
        "parts": found.estimate.parts(),
        "calibrated": found.estimate.calibrated,
        "kv_bytes_a_token": found.token_bytes,
        "kv_bytes_a_stream": found.stream_bytes,
        "streams": found.streams,
        "fits": found.fits,
        "device": found.devices[0] if found.devices else None,
        "devices": [asdict(one) for one in found.on],
        "fits_when_empty": found.fits_when_empty,
        "reasons": list(found.reasons),
    }


def _draft(version: ModelVersion, asked: dict[str, Any]) -> Deployment:
    """The deployment that is asked about; where nothing is said it is as the version's own."""
    draft = Deployment.objects.filter(version=version).first() or Deployment(
        version=version, **version.engine_options
    )
    draft.dtype = asked.get("dtype", "auto")
    draft.quantization = asked.get("quantization") or ""
    draft.tensor_parallel = asked.get("tensor_parallel", 1)
    draft.context_length = asked.get("context_length")
    draft.max_streams = asked.get("streams", 1)
    return draft
