"""Rows to values for the memory estimate and the placement."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db.models import Q, Sum
from django.utils import timezone

from inference.calibration import calibrated_for
from inference.capacity.estimate import MemoryEstimate
from inference.capacity.placement import DeviceRoom
from inference.models import ALIVE, Deployment, Device

NODE_LOST_AFTER_S = settings.NODE_LEASE_S


def estimate_for(deployment: Deployment, device_kind: str = "cpu") -> MemoryEstimate:
    """What one replica of this deployment takes of each of its devices."""
    return calibrated_for(deployment, device_kind)


def device_rooms(*, could_sleep: bool = False) -> list[DeviceRoom]:
    """Every device with what its living replicas reserve; ``could_sleep``: only those that nobody may swap out."""
    cutoff = timezone.now() - timedelta(seconds=NODE_LOST_AFTER_S)
    counted = Q(replicas__state__in=ALIVE)
    if could_sleep:
        counted &= Q(replicas__deployment__pinned=True) | Q(replicas__deployment__on_demand=False)
    rows = Device.objects.select_related("node").annotate(
        reserved=Sum("replicas__reserved_bytes", filter=counted)
    )
    return [
        DeviceRoom(
            id=row.id,
            name=str(row),
            budget_bytes=row.budget_bytes,
            reserved_bytes=row.reserved or 0,
            alive=not row.node.leaving and row.node.last_seen is not None and row.node.last_seen >= cutoff,
        )
        for row in rows
    ]
