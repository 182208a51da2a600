"""A what-if of a version for REST, admin and command."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from inference.calibration import corrected
from inference.capacity.abilities import DRAFT_MODEL, NGRAM
from inference.capacity.estimate import MemoryEstimate
from inference.capacity.whatif import what_if
from inference.drafts import check_plannable, named_draft, proposed_or_plain
from inference.memory import device_rooms
from inference.models import Deployment
from mmserve.errors import InvalidRequest
from registry.models import ModelVersion


def plan_of(version: ModelVersion, **asked: Any) -> dict[str, Any]:
    """Parts in bytes, bytes a token, streams, and where it would fit now or on an empty device.

    Where nothing is asked, of its deployment as it is edited; without one, of a single stream.
    """
    if not version.facts:
        raise InvalidRequest(f"{version.served_id} is {version.state}: nothing is known of its files yet.")
    asked = asked or _as_edited(version)
    draft = _draft_of(version, asked.pop("draft", None))
    sketch = _sketch(version, draft, asked)

    def correct(found: MemoryEstimate, kind: str) -> MemoryEstimate:
        sketch.kv_cache_bytes = found.kv_cache_bytes + found.state_bytes
        return corrected(found, sketch, kind)

    found = what_if(
        version.facts,
        device_rooms(),
        draft=draft.facts if draft else None,
        speculative_tokens=sketch.speculative_tokens if sketch.speculation else 0,
        correct=correct,
        **asked,
    )
    return {
        "id": version.served_id,
        "draft": draft.served_id if draft else None,
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


def _as_edited(version: ModelVersion) -> dict[str, Any]:
    row = Deployment.objects.filter(version=version).first()
    if row is None:
        return {}
    draft = {"draft": row.draft.served_id} if row.draft else {}
    return {
        **draft,
        "context_length": row.context_length,
        "streams": row.max_streams,
        "kv_cache_bytes": row.kv_cache_bytes,
        "dtype": row.dtype,
        "quantization": row.quantization or None,
        "tensor_parallel": row.tensor_parallel,
    }


def _draft_of(version: ModelVersion, named: str | None) -> ModelVersion | None:
    """The version that would guess; InvalidRequest names the field."""
    if named is None:
        return None
    draft = named_draft(named)
    if not draft.facts:
        raise InvalidRequest(
            f"draft: {draft.served_id} is {draft.state}: nothing is known of its files yet.", param="draft"
        )
    check_plannable(version, draft)
    return draft


def _sketch(version: ModelVersion, draft: ModelVersion | None, asked: dict[str, Any]) -> Deployment:
    """The deployment that is asked about; where nothing is said it is as the version's own."""
    sketch = Deployment.objects.filter(version=version).first() or proposed_or_plain(version)
    sketch.draft = draft
    # Of those that a draft goes with; without one, whatever it is now.
    sketch.speculation = DRAFT_MODEL if draft else NGRAM if sketch.speculation == NGRAM else ""
    sketch.dtype = asked.get("dtype", "auto")
    sketch.quantization = asked.get("quantization") or ""
    sketch.tensor_parallel = asked.get("tensor_parallel", 1)
    sketch.context_length = asked.get("context_length")
    sketch.max_streams = asked.get("streams", 1)
    return sketch
