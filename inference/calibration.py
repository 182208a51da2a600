"""Rows of what loads took: written by nodes, read by the next estimate."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from inference.capacity.calibration import Observed, calibrated, grouped, off_by
from inference.capacity.estimate import MemoryEstimate, estimate
from inference.models import Deployment, LoadObservation, Replica
from inference.protocol import ReplicaBeat

# The options that a replica's memory depends on.
MATTERING = (
    "dtype",
    "context_length",
    "max_streams",
    "max_batched_tokens",
    "kv_cache_bytes",
    "prefix_caching",
    "in_process",
    "tensor_parallel",
    "speculation",
    "speculative_tokens",
    "guided_decoding",
    "draft",
)
OTHERS = 20
# Loads of one version on one kind of device that are remembered.
KEPT = 200
# A batch's growth is written down when it is worth a row's change.
GROWTH_BYTES = 2**20


def calculated_for(deployment: Deployment, device_kind: str) -> MemoryEstimate:
    """From the checkpoint and the options alone."""
    return estimate(
        facts=deployment.version.facts,
        dtype=deployment.dtype,
        kv_cache_bytes=deployment.kv_cache_bytes,
        device_kind=device_kind,
        quantization=deployment.quantization or None,
        tensor_parallel=deployment.tensor_parallel,
        max_streams=deployment.max_streams,
        max_batched_tokens=deployment.max_batched_tokens,
        draft=deployment.draft.facts if deployment.draft else None,
        speculative_tokens=deployment.speculative_tokens if deployment.speculation else 0,
    )


def calibrated_for(deployment: Deployment, device_kind: str) -> MemoryEstimate:
    """Corrected by what earlier loads took on this kind of device."""
    return corrected(calculated_for(deployment, device_kind), deployment, device_kind)


def corrected(found: MemoryEstimate, deployment: Deployment, device_kind: str) -> MemoryEstimate:
    """A calculation for this deployment, which need not be saved, by what earlier loads took."""
    seen = LoadObservation.objects.filter(device_kind=device_kind, quantization=deployment.quantization)
    own = list(seen.filter(version=deployment.version_id)[:OTHERS])
    if own:
        key = options_key(deployment)
        same = [row for row in own if row.options_key == key]
        return calibrated(found, same=_of_same(same) if same else None, same_version=_observed(own[0]))
    return calibrated(found, others=[_observed(row) for row in seen[:OTHERS]])


def observe_load(replica: Replica, beat: ReplicaBeat) -> LoadObservation | None:
    """Write down what a load took; its reservation becomes that, and the room that its batches will need."""
    deployment = replica.deployment
    if not beat.memory:
        return None
    kind = replica.device.kind
    predicted = calibrated_for(deployment, kind).parts()
    row = LoadObservation.objects.update_or_create(
        replica=replica,
        defaults={
            "version": deployment.version,
            "device_kind": kind,
            "quantization": deployment.quantization,
            "options": options_of(deployment),
            "options_key": options_key(deployment),
            "calculated": calculated_for(deployment, kind).parts(),
            "predicted": predicted,
            "measured": beat.memory,
            "error": off_by(predicted, beat.memory),
            "peak_streams": beat.peak_running,
        },
    )[0]
    _reserve_what_it_takes(replica, row)
    _forget_old(row)
    return row


def observe_growth(row: LoadObservation, beat: ReplicaBeat) -> bool:
    """Its batches took more than before, or more streams ran at once; True if that was worth writing down."""
    grown = sum(beat.memory.values()) - sum(row.measured.values())
    if grown < GROWTH_BYTES and beat.peak_running <= row.peak_streams:
        return False
    row.measured = beat.memory
    row.error = off_by(row.predicted, row.measured)
    row.peak_streams = beat.peak_running
    row.save(update_fields=["measured", "error", "peak_streams"])
    assert row.replica is not None
    _reserve_what_it_takes(row.replica, row)
    return True


def options_of(deployment: Deployment) -> dict[str, Any]:
    """The options that matter to memory; a draft by its id."""
    found = {name: getattr(deployment, name) for name in MATTERING}
    if deployment.draft is None:
        # Loads that were seen before there were drafts have the same digest still.
        del found["draft"]
        return found
    return {**found, "draft": deployment.draft.served_id}


def options_key(deployment: Deployment) -> str:
    """Their digest."""
    text = json.dumps(options_of(deployment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reserve_what_it_takes(replica: Replica, row: LoadObservation) -> None:
    """Until a full batch was seen, what was predicted for it stays reserved beside what was measured."""
    batch = row.measured.get("activations", 0)
    if not row.batch_was_full:
        batch = max(batch, grouped(row.predicted)["activations"])
    measured = sum(count for name, count in row.measured.items() if name != "activations")
    Replica.objects.filter(pk=replica.pk).update(reserved_bytes=measured + batch)


def _forget_old(row: LoadObservation) -> None:
    """What is swapped all day would fill the table."""
    alike = LoadObservation.objects.filter(version=row.version, device_kind=row.device_kind)
    old = list(alike.values_list("pk", flat=True)[KEPT:])
    if old:
        LoadObservation.objects.filter(pk__in=old).delete()


def _observed(row: LoadObservation) -> Observed:
    return Observed(measured=row.measured, calculated=row.calculated, batch_was_full=row.batch_was_full)


def _of_same(rows: list[LoadObservation]) -> Observed:
    """The latest load, with the largest batch that was seen in any of them."""
    latest = _observed(rows[0])
    batch = max(row.measured.get("activations", 0) for row in rows)
    return Observed(
        measured={**latest.measured, "activations": batch},
        calculated=latest.calculated,
        batch_was_full=any(row.batch_was_full for row in rows),
    )
