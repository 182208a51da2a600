"""The controller's second idea: more models than memory. Whoever is asked for gets room from whom it costs least."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import redis
from django.utils import timezone

from inference.beats import read_beats
from inference.capacity.ladder import ASLEEP, SERVING
from inference.capacity.pauses import Pauses
from inference.capacity.placement import DeviceRoom, Need, place, refusal
from inference.capacity.swap import LEAD_S, SOON_S, Resident, Wanted, choose_victims
from inference.engine.rqkeys import queue_key
from inference.fit import refuse, why_nowhere
from inference.memory import device_rooms, need_of
from inference.models import ALIVE, PRIORITY_CLASSES, Deployment, Replica, ReplicaState
from inference.notify import connection
from inference.protocol import PRIORITIES, ReplicaBeat, queue_name
from inference.rungs import (
    can_be_raised,
    devices_of,
    held_by,
    is_resting,
    lower,
    missing_bytes,
    on_its_way_down,
)

log = logging.getLogger(__name__)

UNKNOWN_RELOAD_S = 10.0


@dataclass(slots=True)
class Use:
    """What the controller remembers of one deployment; lost with it, and learned again."""

    pauses: Pauses
    used_at: float
    name: str = ""
    asked_at: float | None = None
    busy: bool = False
    jobs: int = 0
    steps: int = 0
    worked: bool = True

    def seen(self, jobs: int, beats: Sequence[ReplicaBeat], now: float, of_all: Pauses) -> None:
        """What waits, what runs, and whether an engine has moved on since the last look; a pause ends with any."""
        steps = sum(beat.steps for beat in beats)
        self.jobs = jobs
        self.busy = bool(jobs) or any(beat.running or beat.waiting for beat in beats)
        worked = self.busy or steps > self.steps
        if worked and not self.worked:
            for pauses in (self.pauses, of_all):
                pauses.ended(now - self.used_at)
        self.worked, self.steps = worked, steps
        if worked:
            self.used_at = now


class Swapper:
    """Called at every pass of the controller."""

    def __init__(self) -> None:
        self._uses: dict[int, Use] = {}
        self._pauses = Pauses()

    def step(self) -> None:
        """Observe, put to sleep, wake; the controller then starts and stops by the rows."""
        now = time.monotonic()
        deployments = list(
            Deployment.objects.filter(replicas__gt=0, failure="").select_related(
                "version__model", "draft__model"
            )
        )
        self._uses = {pk: use for pk, use in self._uses.items() if pk in {row.pk for row in deployments}}
        replicas: dict[int, list[Replica]] = defaultdict(list)
        alive = Replica.objects.filter(state__in=ALIVE, deployment__in=deployments)
        for replica in alive.select_related("device__node").prefetch_related("more_devices"):
            replicas[replica.deployment_id].append(replica)
        self._observe(deployments, replicas, now)
        self._sleep_idle(deployments, replicas, now)
        self._make_room(deployments, replicas, now)

    def asked_s(self) -> dict[str, float]:
        """For how long each deployment that is not up has been asked for, by name."""
        now = time.monotonic()
        return {use.name: now - use.asked_at for use in self._uses.values() if use.asked_at is not None}

    def _observe(
        self, deployments: Sequence[Deployment], replicas: dict[int, list[Replica]], now: float
    ) -> None:
        """Notes who is busy and since when somebody asks."""
        waiting = waiting_jobs(deployments)
        ready = [str(row.pk) for rows in replicas.values() for row in rows if row.state == ReplicaState.READY]
        beats = read_beats(ready)
        for row in deployments:
            use = self._uses.setdefault(row.pk, Use(Pauses(), now, row.name))
            own = [beats[key] for one in replicas[row.pk] if (key := str(one.pk)) in beats]
            use.seen(waiting[row.pk], own, now, self._pauses)
            asked = (waiting[row.pk] > 0 or row.wanted_at is not None) and not _is_up(replicas[row.pk])
            use.asked_at = (use.asked_at or now) if asked else None

    def _sleep_idle(
        self, deployments: Sequence[Deployment], replicas: dict[int, list[Replica]], now: float
    ) -> None:
        for row in deployments:
            use = self._uses[row.pk]
            if (
                row.idle_ttl_s is not None
                and row.on_demand
                and not (row.pinned or row.hot_since or row.asleep or use.busy)
                and _is_up(replicas[row.pk])
                and now - use.used_at >= row.idle_ttl_s
                and _age_s(replicas[row.pk]) >= row.idle_ttl_s
            ):
                put_to_sleep(row, f"idle for {now - use.used_at:.0f} s")
                for replica in replicas[row.pk]:
                    lower(replica, row, held_by(replica, row).freed_by(ASLEEP))

    def _make_room(
        self,
        deployments: Sequence[Deployment],
        replicas: dict[int, list[Replica]],
        now: float,
    ) -> None:
        """For each that is asked for, by its turn."""
        asking = [
            row
            for row in deployments
            if self._uses[row.pk].asked_at is not None and all(map(is_resting, replicas[row.pk]))
        ]
        asking.sort(key=lambda row: self._wanted(row, 0, now).turn)
        rooms = {room.id: room for room in device_rooms()}
        # Where somebody is on the way out, its memory comes back by itself: nobody else has to go yet.
        leaving: dict[int, int] = defaultdict(int)
        for rows in replicas.values():
            for replica in rows:
                if replica.stop_requested or replica.state == ReplicaState.DRAINING:
                    for device in devices_of(replica):
                        leaving[device] += replica.reserved_bytes
        for row in deployments:
            for replica in replicas[row.pk]:
                if on_its_way_down(replica):
                    held = held_by(replica, row)
                    for device in devices_of(replica):
                        leaving[device] += held.freed_by(replica.wanted_rung) - held.freed_by(replica.rung)
        for row in asking:
            resting = [replica for replica in replicas[row.pk] if not replica.stop_requested]
            if any(can_be_raised(replica, row, list(rooms.values())) for replica in resting):
                wake(row)
                continue
            need = need_of(row, rooms.values())
            if place(need, list(rooms.values())).device_id is not None:
                wake(row)
                _take(rooms, need)
                continue
            if not replicas[row.pk] and (nowhere := why_nowhere(need, device_rooms(could_sleep=True))):
                refuse(row, nowhere)
                continue
            if not _coming(need, rooms, leaving):
                self._evict_for(row, need, deployments, replicas, rooms, leaving, now)
            # Its room comes by itself: nobody behind it takes that.
            for device in _coming(need, rooms, leaving):
                needed = need.on(rooms[device])
                free = min(needed, rooms[device].free_bytes)
                rooms[device] = _with_free(rooms[device], -free)
                leaving[device] -= needed - free

    def _evict_for(
        self,
        row: Deployment,
        need: Need,
        deployments: Sequence[Deployment],
        replicas: dict[int, list[Replica]],
        rooms: dict[int, DeviceRoom],
        leaving: dict[int, int],
        now: float,
    ) -> None:
        wanted = self._wanted(row, need.bytes, now)
        loads_left = loads_left_s((one, replica) for one in deployments for replica in replicas[one.pk])
        by_name = {one.name: one for one in deployments}
        found = []
        # One that rests needs no more than what it gave back, where it is.
        to_wake = {device: missing_bytes(one, row) for one in replicas[row.pk] for device in devices_of(one)}
        short: dict[int, int] = {}
        for room in rooms.values():
            if refusal(need, replace(room, reserved_bytes=0)) is not None:
                continue
            if (left_s := loads_left.get(room.id, 0.0)) > LEAD_S:
                log.debug(
                    "no room for %s on %s yet: it loads another for %.0f s", row.name, room.name, left_s
                )
                continue
            residents = [
                self._resident(by_pk, replica, now)
                for by_pk in deployments
                for replica in replicas[by_pk.pk]
                if room.id in devices_of(replica)
                and not replica.stop_requested
                and (not by_pk.asleep or (replica.rung != SERVING and not on_its_way_down(replica)))
                and by_pk.pk != row.pk
            ]
            free = room.free_bytes + leaving[room.id]
            missing = to_wake.get(room.id, need.on(room))
            short[room.id] = missing - free
            eviction = choose_victims(replace(wanted, bytes=missing), residents, free)
            if eviction.victims or free >= missing:
                found.append((eviction.cost, room.id, room, eviction.victims))
            else:
                log.debug("no room for %s on %s: %s", row.name, room.name, "; ".join(eviction.reasons))
        for name in sorted(_cheapest_group(need, found)):
            victim = by_name[name]
            put_to_sleep(victim, f"{row.name} is asked for")
            for replica in replicas[victim.pk]:
                devices = devices_of(replica)
                freed = lower(replica, victim, max(short.get(device, 0) for device in devices))
                for device in devices:
                    leaving[device] += freed
                    short[device] = short.get(device, 0) - freed

    def _wanted(self, row: Deployment, needed: int, now: float) -> Wanted:
        use = self._uses[row.pk]
        return Wanted(
            bytes=needed,
            rank=PRIORITY_CLASSES.index(row.priority_class),
            jobs=use.jobs,
            waited_s=now - (use.asked_at or now),
            max_wait_s=row.max_wait_s,
            load_s=row.usual_load_s or UNKNOWN_RELOAD_S,
        )

    def _resident(self, row: Deployment, replica: Replica, now: float) -> Resident:
        use = self._uses[row.pk]
        reload_s = row.usual_load_s or UNKNOWN_RELOAD_S
        return Resident(
            id=row.name,
            bytes=replica.reserved_bytes,
            rank=PRIORITY_CLASSES.index(row.priority_class),
            pinned=row.pinned or row.hot_since is not None,
            on_demand=row.on_demand,
            resident_s=_age_s([replica]),
            min_residency_s=row.min_residency_s,
            # What is still loading was asked for by somebody.
            busy=replica.rung == SERVING and (use.busy or replica.state != ReplicaState.READY),
            soon=use.pauses.again(now - use.used_at, SOON_S, self._pauses),
            missed=use.pauses.again(now - use.used_at, reload_s, self._pauses),
            reload_s=reload_s,
        )


def waiting_jobs(deployments: Sequence[Deployment]) -> dict[int, int]:
    """Jobs in each deployment's queues; none while Redis is away."""
    pipeline = connection().pipeline(transaction=False)
    for row in deployments:
        for priority in PRIORITIES:
            pipeline.llen(queue_key(queue_name(row.name, priority)))
    try:
        counts = pipeline.execute() if deployments else []
    except redis.RedisError as error:
        log.warning("the queues cannot be read: %s", error)
        counts = [0] * len(deployments) * len(PRIORITIES)
    size = len(PRIORITIES)
    return {row.pk: sum(counts[at * size : (at + 1) * size]) for at, row in enumerate(deployments)}


def loads_left_s(rows: Iterable[tuple[Deployment, Replica]]) -> dict[int, float]:
    """For how long each device still loads what was placed there; 0 for what takes longer than it usually does."""
    found: dict[int, float] = defaultdict(float)
    for row, replica in rows:
        if replica.state in (ReplicaState.PENDING, ReplicaState.LOADING) and not replica.stop_requested:
            gone_s = (timezone.now() - replica.created_at).total_seconds()
            for device in devices_of(replica):
                found[device] += max(0.0, (row.usual_load_s or UNKNOWN_RELOAD_S) - gone_s)
    return found


def put_to_sleep(row: Deployment, why: str) -> None:
    """The wish stays; its replicas drain and stop, and a request brings it back."""
    Deployment.objects.filter(pk=row.pk).update(asleep=True, wanted_at=None)
    row.asleep = True
    log.info("%s goes to sleep: %s", row.name, why)


def wake(row: Deployment) -> None:
    """There is room for it now."""
    Deployment.objects.filter(pk=row.pk).update(asleep=False, wanted_at=None)
    row.asleep = False
    log.info("%s wakes", row.name)


def _is_up(rows: list[Replica]) -> bool:
    return any(
        row.state == ReplicaState.READY and not row.stop_requested and not is_resting(row) for row in rows
    )


def _age_s(rows: list[Replica]) -> float:
    """Seconds since the youngest of them was ready; 0 while one is not."""
    return min(
        ((timezone.now() - row.ready_at).total_seconds() if row.ready_at else 0.0 for row in rows),
        default=0.0,
    )


def _with_free(room: DeviceRoom, more: int) -> DeviceRoom:
    return replace(room, reserved_bytes=max(0, room.reserved_bytes - more))


def _coming(need: Need, rooms: dict[int, DeviceRoom], leaving: dict[int, int]) -> Sequence[int]:
    """Where it fits once those who leave have left."""
    return place(need, [_with_free(room, leaving[room.id]) for room in rooms.values()]).device_ids


def _take(rooms: dict[int, DeviceRoom], need: Need) -> None:
    """Note what was just given away, so that the next one does not count on it."""
    for chosen in place(need, list(rooms.values())).device_ids:
        rooms[chosen] = _with_free(rooms[chosen], -need.on(rooms[chosen]))


def _cheapest_group(need: Need, found: Sequence[tuple[float, int, DeviceRoom, tuple[str, ...]]]) -> set[str]:
    """Who goes so that as many devices of one kind on one node are free as it needs; nobody where there are not."""
    groups: dict[tuple[str, str], list[tuple[float, int, tuple[str, ...]]]] = defaultdict(list)
    for cost, device, room, victims in found:
        groups[room.node, room.kind].append((cost, device, victims))
    enough = [sorted(group)[: need.devices] for group in groups.values() if len(group) >= need.devices]
    if not enough:
        return set()
    cheapest = min(enough, key=lambda group: (sum(cost for cost, _, _ in group), group[0][1]))
    return {name for _, _, victims in cheapest for name in victims}
