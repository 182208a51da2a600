"""Why a deployment is not running as wished: beside its status, in REST and admin. Read from rows and beats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from inference.beats import read_beats
from inference.capacity.placement import DeviceRoom, Need, place, refusal, refusals
from inference.capacity.swap import LEAD_S, Resident, Wanted, spared
from inference.memory import device_rooms, need_of
from inference.models import ALIVE, PRIORITY_CLASSES, Deployment, Replica, ReplicaState
from inference.protocol import ReplicaBeat
from inference.reconcile import backoff_s
from inference.swapping import UNKNOWN_RELOAD_S, loads_left_s
from registry import store
from registry.cache import entry_name
from registry.models import ModelVersion

# Of more devices than these only the first are spoken of.
MAX_REASONS = 20


def why_not_running(version: ModelVersion) -> list[str]:
    """Sentences; none where as many replicas serve as are wished for, or none are."""
    found = Deployment.objects.select_related("version__model")
    deployment = found.filter(version=version).first()
    if deployment is None or not deployment.replicas:
        return []
    rows = list(
        Replica.objects.filter(deployment=deployment)
        .filter(Q(state__in=ALIVE) | Q(state=ReplicaState.FAILED, superseded=False))
        .select_related("device__node", "deployment__version__model", "deployment__draft__model")
        .prefetch_related("more_devices")
        .order_by("created_at")
    )
    staying = [row for row in rows if row.state in ALIVE and not row.stop_requested]
    if sum(row.state == ReplicaState.READY for row in staying) >= deployment.replicas:
        return []
    if deployment.failure:
        return [f"{deployment.failure}. A load starts anew."]
    reasons = []
    for row in rows:
        if row.state in ALIVE and row.stop_requested:
            reasons.append(f"{row} on {row.device} still drains.")
        elif row.state == ReplicaState.PENDING:
            reasons.append(_of_pending(row))
        elif row.state == ReplicaState.LOADING:
            reasons.append(f"{row} loads on {row.device}.")
    if len(staying) < deployment.replicas:
        reasons += _of_missing(deployment, [row for row in rows if row.state == ReplicaState.FAILED])
    if len(reasons) > MAX_REASONS:
        reasons[MAX_REASONS:] = [f"And {len(reasons) - MAX_REASONS} more reasons like these."]
    return reasons


def _of_pending(row: Replica) -> str:
    """It has its memory: what its node waits for."""
    node = row.device.node
    if not node.template_ready:
        return f"{row} waits for the engine template of {node.name}, which still imports."
    devices = [row.device, *row.more_devices.all()]
    loading = Replica.objects.filter(state=ReplicaState.LOADING).exclude(pk=row.pk)
    other = loading.filter(Q(device__in=devices) | Q(more_devices__in=devices)).select_related("deployment")
    if (first := other.first()) is not None:
        return f"{row} waits until {first} is loaded: loads on one device come one after the other."
    needed = {entry_name(version) for version in row.deployment.loaded_versions}
    if not store.is_local() and not needed <= set(node.files):
        return f"{row} waits for its files, which are on their way to {node.name}."
    return f"{row} waits for {node.name} to start it."


def _of_missing(deployment: Deployment, failed: Sequence[Replica]) -> list[str]:
    """No memory is reserved for it: because it backs off, sleeps, or finds no room."""
    reasons = []
    if failed and failed[-1].ended_at is not None:
        again_at = failed[-1].ended_at + timedelta(seconds=backoff_s(len(failed)))
        if again_at > timezone.now():
            last = failed[-1].reason or "the engine ended without a reason"
            reasons.append(
                f"Loads that failed in a row: {len(failed)}; the next one is tried at {again_at:%H:%M:%S} UTC: {last}"
            )
    if deployment.asleep and deployment.wanted_at is None:
        reasons.append("It sleeps until somebody asks for it.")
    rooms = device_rooms()
    need = need_of(deployment, rooms)
    if (placement := place(need, rooms)).device_ids:
        # Where nothing else holds it back, it goes there within a second.
        where = ", ".join(room.name for room in rooms if room.id in placement.device_ids)
        return reasons or [f"There is room on {where}: it is the controller's turn (`manage.py controller`)."]
    return [*reasons, *refusals(need, rooms), *_of_residents(deployment, need, rooms)]


def _of_residents(deployment: Deployment, need: Need, rooms: Sequence[DeviceRoom]) -> list[str]:
    """Of those that are where it could be: who may be put to sleep for it, and why not the others."""
    there: dict[int, list[Replica]] = defaultdict(list)
    alive = Replica.objects.filter(state__in=ALIVE, stop_requested=False).exclude(deployment=deployment)
    alive = alive.select_related("deployment").prefetch_related("more_devices").order_by("deployment__name")
    for row in alive:
        for device in (row.device_id, *(device.pk for device in row.more_devices.all())):
            there[device].append(row)
    beats = read_beats(str(row.pk) for rows in there.values() for row in rows)
    asked_at = deployment.wanted_at
    waited_s = (timezone.now() - asked_at).total_seconds() if asked_at else 0.0
    found = []
    loads_left = loads_left_s(
        {row: (row.deployment, row) for rows in there.values() for row in rows}.values()
    )
    for room in rooms:
        # Only where it would fit if nobody else was there.
        if not there[room.id] or refusal(need, _emptied(room)) is not None:
            continue
        if loads_left.get(room.id, 0.0) > LEAD_S:
            found.append(f"{room.name} loads another: room for this one is made when that is up.")
        wanted = Wanted(
            bytes=need.on(room),
            rank=PRIORITY_CLASSES.index(deployment.priority_class),
            waited_s=waited_s,
            max_wait_s=deployment.max_wait_s,
            load_s=deployment.usual_load_s or UNKNOWN_RELOAD_S,
        )
        for row in there[room.id]:
            why = spared(_resident(row, beats.get(str(row.pk))), wanted)
            does = f"is not put to sleep for it: {why}" if why else "may be put to sleep for it"
            found.append(f"{row.deployment.name} on {room.name} {does}.")
    return found


def _emptied(room: DeviceRoom) -> DeviceRoom:
    return replace(room, reserved_bytes=0)


def _resident(row: Replica, beat: ReplicaBeat | None) -> Resident:
    """As the controller sees it, but for how often it is used, which only the controller remembers."""
    owner = row.deployment
    return Resident(
        id=owner.name,
        bytes=row.reserved_bytes,
        rank=PRIORITY_CLASSES.index(owner.priority_class),
        pinned=owner.pinned,
        on_demand=owner.on_demand,
        resident_s=(timezone.now() - row.ready_at).total_seconds() if row.ready_at else 0.0,
        min_residency_s=owner.min_residency_s,
        busy=row.state != ReplicaState.READY or (beat is not None and bool(beat.running or beat.waiting)),
        reload_s=row.load_seconds or UNKNOWN_RELOAD_S,
    )
