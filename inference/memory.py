"""Rows to values for the memory estimate and the placement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from inference.calibration import calibrated_for
from inference.capacity.abilities import LIMITED
from inference.capacity.estimate import KvCost, MemoryEstimate, kept_dtype_bytes, kv_cost
from inference.capacity.placement import DeviceRoom, Need
from inference.models import ALIVE, Deployment, Device, Replica
from registry import store
from registry.cache import entry_name

NODE_LOST_AFTER_S = settings.NODE_LEASE_S


def estimate_for(deployment: Deployment, device_kind: str = "cpu") -> MemoryEstimate:
    """What one replica of this deployment takes of each of its devices."""
    return calibrated_for(deployment, device_kind)


def kv_cost_of(deployment: Deployment) -> KvCost | None:
    """What a stream costs of its cache, its draft's keys and values with it; None where the facts do not tell."""
    return kv_cost(
        deployment.version.facts,
        kept_dtype_bytes(deployment.dtype),
        deployment.tensor_parallel,
        draft=deployment.draft.facts if deployment.draft else None,
    )


def need_of(deployment: Deployment, rooms: Iterable[DeviceRoom]) -> Need:
    """What a replica of this deployment asks for on these devices."""
    kinds = sorted({room.kind for room in rooms}) or ["cpu"]
    by_kind = {kind: estimate_for(deployment, kind).total_bytes for kind in kinds}
    return Need(
        bytes=max(by_kind.values()),
        by_kind=by_kind,
        devices=deployment.tensor_parallel,
        strategy=deployment.placement,
        options={name: getattr(deployment, name) for name in LIMITED},
        files="" if store.is_local() else entry_name(deployment.version),
    )


def device_rooms(*, could_sleep: bool = False) -> list[DeviceRoom]:
    """Every device with what its living replicas reserve; ``could_sleep``: only those that nobody may swap out."""
    cutoff = timezone.now() - timedelta(seconds=NODE_LOST_AFTER_S)
    reserved = reserved_bytes(could_sleep=could_sleep)
    files: dict[int, frozenset[str]] = {}
    rooms = []
    for row in Device.objects.select_related("node"):
        node = row.node
        rooms.append(
            DeviceRoom(
                id=row.id,
                name=str(row),
                budget_bytes=row.budget_bytes,
                reserved_bytes=reserved[row.id],
                alive=not node.leaving and node.last_seen is not None and node.last_seen >= cutoff,
                node=node.name,
                kind=row.kind,
                used_by_others_bytes=row.used_by_others_bytes,
                abilities=row.abilities,
                files=files.setdefault(node.pk, frozenset(node.files)),
            )
        )
    return rooms


def reserved_bytes(*, could_sleep: bool = False) -> dict[int, int]:
    """By device: what living replicas reserve on it."""
    alive = Replica.objects.filter(state__in=ALIVE)
    if could_sleep:
        swappable = Q(deployment__pinned=False, deployment__on_demand=True)
        alive = alive.exclude(swappable | Q(stop_requested=True))
    found: dict[int, int] = defaultdict(int)
    for device, count in alive.values_list("device", "reserved_bytes"):
        found[device] += count
    for device, count in alive.exclude(more_devices=None).values_list("more_devices", "reserved_bytes"):
        found[device] += count
    return found
