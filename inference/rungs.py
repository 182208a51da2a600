"""Rows on the ladder: who is lowered to which rung, who is raised again, and what that frees and takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import transaction
from django.db.models import Sum

from inference.capacity.ladder import (
    LADDER,
    REMOTE,
    RESTING,
    SERVING,
    STOPPED,
    Held,
    Step,
    bytes_to_wake,
    step_down,
)
from inference.capacity.placement import DeviceRoom
from inference.memory import device_rooms, estimate_for
from inference.models import ALIVE, Deployment, Device, Node, Replica, ReplicaState
from inference.notify import wake_node
from registry import store
from registry.cache import entry_name

log = logging.getLogger(__name__)


def is_resting(replica: Replica) -> bool:
    """Whether it is, or is to be, on one of the middle rungs."""
    return replica.wanted_rung != SERVING


def devices_of(replica: Replica) -> set[int]:
    """The keys of all devices that it has."""
    return {replica.device_id, *(device.pk for device in replica.more_devices.all())}


def held_by(replica: Replica, deployment: Deployment) -> Held:
    """What it has of each of its devices while it serves."""
    estimate = estimate_for(deployment, replica.device.kind)
    return Held(
        total_bytes=replica.serving_bytes or replica.reserved_bytes,
        weights_bytes=estimate.weights_bytes + estimate.draft_weights_bytes,
        kv_cache_bytes=estimate.kv_cache_bytes,
    )


def way_down(replica: Replica, deployment: Deployment, needed_bytes: int) -> Step | None:
    """The step that frees enough and from which it is soonest back."""
    return step_down(
        replica.rungs,
        replica.rung,
        held_by(replica, deployment),
        needed_bytes=needed_bytes,
        host_free_bytes=host_free_bytes(replica.device.node),
        load_s=deployment.usual_load_s or 0.0,
        measured=replica.wake_seconds,
    )


def lower(replica: Replica, deployment: Deployment, needed_bytes: int) -> int:
    """Have a replica give back so many bytes of each of its devices; how many it will.

    It goes no deeper than it must, from where it is: from a middle rung to a deeper one, too. What has no rung to
    rest on is stopped: its deployment sleeps, nobody wishes for it.
    """
    step = way_down(replica, deployment, max(0, needed_bytes))
    if step is None:
        return 0
    if step.rung in RESTING:
        changed = Replica.objects.filter(
            pk=replica.pk,
            state=ReplicaState.READY,
            stop_requested=False,
            rung=replica.rung,
            wanted_rung=replica.rung,
        ).update(wanted_rung=step.rung)
        if not changed:
            return 0
        replica.wanted_rung = step.rung
        wake_node(replica.device.node.name)
        log.info("%s is to rest as %s", replica, step.rung)
    elif is_resting(replica):
        request_stop(replica)
    return step.freed_bytes


def on_its_way_down(replica: Replica) -> bool:
    """Whether it has not yet given back all that it is to."""
    return is_resting(replica) and LADDER.index(replica.rung) < LADDER.index(replica.wanted_rung)


def missing_bytes(replica: Replica, deployment: Deployment) -> int:
    """What its device must have free before it may be raised."""
    return bytes_to_wake(replica.rung, held_by(replica, deployment), replica.reserved_bytes)


def can_be_raised(replica: Replica, deployment: Deployment, rooms: Sequence[DeviceRoom]) -> bool:
    """Whether its device has room for what it gave back."""
    missing, devices = missing_bytes(replica, deployment), devices_of(replica)
    with_room = {room.id for room in rooms if room.alive and room.free_bytes >= missing}
    return devices <= with_room


def raise_one(deployment: Deployment, resting: Iterable[Replica]) -> bool:
    """Reserve what one of them gave back, and have its node wake it; False where there is no room."""
    for replica in resting:
        with transaction.atomic():
            # The same lock as a placement's.
            list(Device.objects.select_for_update().order_by("pk"))
            row = Replica.objects.filter(pk=replica.pk, state=ReplicaState.READY, stop_requested=False)
            now = row.exclude(wanted_rung=SERVING).select_related("device").first()
            if now is None or not can_be_raised(now, deployment, device_rooms()):
                continue
            row.update(wanted_rung=SERVING, reserved_bytes=now.serving_bytes)
            wake_node(replica.device.node.name)
        log.info("%s is raised from %s", replica, now.rung)
        return True
    return False


def request_stop(replica: Replica) -> None:
    """Ask the node to drain and stop a replica."""
    Replica.objects.filter(pk=replica.pk).update(stop_requested=True)
    wake_node(replica.device.node.name)
    log.info("asked for the stop of %s", replica)


def host_free_bytes(node: Node) -> int:
    """What a node's host memory has for weights that sleep there."""
    rows = Replica.objects.filter(device__node=node, state__in=ALIVE)
    taken = rows.aggregate(total=Sum("host_bytes"))["total"] or 0
    return max(0, node.host_budget_bytes - taken)


def ladders(deployments: Iterable[Deployment]) -> dict[int, dict[str, Any]]:
    """By deployment: the rungs that it has, and the one that it is on; a fixed number of queries."""
    rows = list(deployments)
    replicas = Replica.objects.filter(deployment__in=rows, state__in=ALIVE).exclude(
        state=ReplicaState.PENDING
    )
    found: dict[int, list[Replica]] = {row.pk: [] for row in rows}
    for replica in replicas:
        found[replica.deployment_id].append(replica)
    of_devices = {
        rung
        for abilities in Device.objects.values_list("abilities", flat=True)
        for rung in abilities.get("ladder", ())
    }
    files = {name for names in Node.objects.values_list("files", flat=True) for name in names}
    return {row.pk: _ladder(row, found[row.pk], of_devices, files) for row in rows}


def _ladder(
    row: Deployment, replicas: list[Replica], of_devices: set[str], files: set[str]
) -> dict[str, Any]:
    possible = of_devices | {rung for replica in replicas for rung in replica.rungs} | {SERVING, STOPPED}
    if store.is_local():
        # Its files never leave: the store is this disk.
        possible.discard(REMOTE)
    rung = min((replica.rung for replica in replicas), key=LADDER.index, default=None)
    if rung is None:
        here = store.is_local() or entry_name(row.version) in files
        rung = STOPPED if here else REMOTE
    return {"rung": rung, "ladder": [name for name in LADDER if name in possible]}
