"""The node's agent: keeps this machine's engine processes as the replica rows wish, and the rows as they are."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import redis
from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from inference.actions import blame_files, preload
from inference.calibration import observe_growth, observe_load, options_key
from inference.capacity.ladder import SERVING
from inference.engine.choice import is_vllm
from inference.engine.release import release_dead_worker
from inference.engine.rqkeys import worker_name
from inference.engine_options import engine_options
from inference.memory import device_rooms
from inference.models import ALIVE, Device, Node, Replica, ReplicaState
from inference.node.checks import answer_checks
from inference.node.compiling import Compiling
from inference.node.devices import abilities_of, host_budget, local_devices
from inference.node.files import ReplicaFiles
from inference.node.supervisor import ReplicaExit, ReplicaSupervisor
from inference.node.suspicion import Suspicion
from inference.node.usage import OwnEngine, usage
from inference.notify import connection, fence, tell_gateways, tell_replica, wake_controller
from inference.outlook import remember_load
from inference.protocol import HEARTBEAT_S, STALE_AFTER_S, ReplicaBeat, ReplicaSpec, beat_key
from registry import cache, store
from registry.fetch.fetcher import in_words
from registry.revision import current

log = logging.getLogger(__name__)

# An engine that was told to drain ends by itself; so much later it is killed.
KILL_AFTER_DRAIN_S = 5.0
# To lie down or get up, once nothing runs.
MOVE_TIMEOUT_S = 120.0
REPORT_EVERY_S = 2.0
# A smaller change of what is used is not worth a row's.
NOTABLE_BYTES = 16 * 2**20


class NodeReplaced(Exception):
    """Another process speaks for this node now."""


class NodeAgent:
    """Owns the supervisor; every `tick` compares rows with processes once.

    Rows are written by compare-and-set: a replica that was given up (its node's lease had expired) stays so,
    whatever its node finds out later, and its process is ended.
    """

    def __init__(self, name: str, supervisor: ReplicaSupervisor) -> None:
        self.supervisor = supervisor
        self.log_dir = Path(settings.DATA_DIR) / "logs" / "replicas"
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.epoch = uuid.uuid4()
        self.reported_at = timezone.now()
        fresh = {
            "last_seen": self.reported_at,
            "epoch": self.epoch,
            "leaving": False,
            "host_budget_bytes": host_budget(settings.MEMORY_BYTES),
        }
        self.node = Node.objects.update_or_create(name=name, defaults=fresh)[0]
        self.leaving = False
        self.stopping: set[str] = set()
        self.loading_since: dict[str, float] = {}
        self.moving: dict[str, float] = {}  # since when each is on its way to another rung
        # Reaped and not yet written down: the database may be away.
        self.ended: deque[ReplicaExit] = deque()
        self.files = ReplicaFiles()
        self.suspicion = Suspicion()
        self.devices = local_devices(settings.MEMORY_BYTES)
        self.seen: dict[str, tuple[int, int]] = {}
        # By replica: the digest of the options that matter to its memory.
        self.started_with: dict[str, str] = {}
        self._fetch_told_at: dict[str, float] = {}
        self.compiling: Compiling | None = None
        if settings.COMPILED_DIR and is_vllm():
            self.compiling = Compiling(Path(settings.COMPILED_DIR), self.log_dir, supervisor, self._room)
        self._record_devices()
        self._bury_predecessors()
        preload(actor=f"node {name}")

    def _record_devices(self) -> None:
        for device in self.devices:
            Device.objects.update_or_create(
                node=self.node,
                name=device.name,
                defaults={
                    "kind": device.kind,
                    "total_bytes": device.total_bytes,
                    "budget_bytes": device.budget_bytes,
                    "abilities": abilities_of(device, self.devices),
                },
            )
        self.node.devices.exclude(name__in=[device.name for device in self.devices]).delete()

    def _bury_predecessors(self) -> None:
        """Engines die with their node (parent-death signal), so what an earlier node left alive in rows is dead.

        Or that node only seemed to be: then its engines find the fence.
        """
        for replica in Replica.objects.filter(device__node=self.node, state__in=ALIVE):
            if replica.pid is not None:
                self._release_jobs(str(replica.pk), replica.pid, "the node was restarted")
            fence(str(replica.pk))
            self._end(replica, ReplicaState.FAILED, "the node was restarted", superseded=True)
        # A node that starts anew may well load what the one before it could not.
        Replica.objects.filter(device__node=self.node, state=ReplicaState.FAILED).update(superseded=True)

    def tick(self) -> bool:
        """One comparison. True while something is loading, so that the caller looks again soon."""
        self.ended += self.supervisor.poll()
        while self.ended:
            self._on_exit(self.ended[0])
            self.ended.popleft()
        for finding in self.suspicion.findings():
            blame_files(
                finding.replica,
                finding.version,
                finding.damage,
                renewed=finding.renewed,
                actor=f"node {self.node.name}",
            )
        now = timezone.now()
        reported = self._report(now)
        if not self.leaving:
            answer_checks(self.node.name, self.supervisor)
        loading = False
        alive = Replica.objects.filter(device__node=self.node, state__in=ALIVE).order_by("created_at")
        rows = list(
            alive.select_related(
                "deployment__version__model", "deployment__draft__model", "device", "observation"
            ).prefetch_related("more_devices")
        )
        if reported:
            self._record_usage(rows)
        self._kill_strays({str(row.pk) for row in rows})
        there = set(self.supervisor.replicas)
        busy = {name for row in rows if row.state == ReplicaState.LOADING for name in device_names(row)}
        for replica in rows:
            if replica.state != ReplicaState.PENDING and str(replica.pk) not in there:
                self._end(replica, ReplicaState.FAILED, "its process is gone", superseded=True)
            elif replica.stop_requested or self.leaving:
                self._stop(replica)
            elif replica.state == ReplicaState.PENDING:
                loading = True
                # One load at a time on a device: each measures what it takes of it.
                if busy.isdisjoint(device_names(replica)) and self._start(replica):
                    busy.update(device_names(replica))
            elif replica.state == ReplicaState.LOADING:
                loading = not self._promote_if_ready(replica) or loading
            elif replica.state == ReplicaState.READY:
                if reported and replica.rung == SERVING:
                    self._watch_memory(replica)
                if reported or replica.wanted_rung != replica.rung:
                    loading = self._move(replica) or loading
        if self.compiling is not None and not self.leaving:
            self.compiling.tick(loading=loading)
        return loading or bool(self.stopping)

    def _room(self) -> int:
        """What no replica has reserved of this machine's memory."""
        own = f"{self.node.name}/"
        return sum(room.free_bytes for room in device_rooms() if room.name.startswith(own))

    def _report(self, now: datetime) -> bool:
        """Renew the lease now and then; NodeReplaced if it is another's."""
        if (now - self.reported_at).total_seconds() < REPORT_EVERY_S:
            return False
        mine = Node.objects.filter(pk=self.node.pk, epoch=self.epoch)
        if not mine.update(
            last_seen=now,
            template_ready=self.supervisor.template_ready,
            revision=current(),
            files=[] if store.is_local() else cache.names(),
        ):
            raise NodeReplaced(
                f"another process runs as node {self.node.name}; every node needs its own name"
            )
        self.reported_at = now
        return True

    def _kill_strays(self, wished: set[str]) -> None:
        """Processes whose rows are closed: this node's lease had expired, and others took over."""
        for replica in self.supervisor.replicas:
            if replica not in wished:
                self.supervisor.kill(replica, "it was given up while its node was not heard of")

    def _record_usage(self, replicas: Sequence[Replica]) -> None:
        """What engines and others have of the devices now."""
        engines = []
        for row in replicas:
            if row.pid is not None:
                observation = getattr(row, "observation", None)
                taken = sum(observation.measured.values()) if observation else None
                engines.append(OwnEngine(pid=row.pid, devices=frozenset(device_names(row)), bytes=taken))
        for name, found in usage(self.devices, engines).items():
            seen = (found.used_bytes, found.used_by_others_bytes)
            before = self.seen.get(name, (0, 0))
            if any(abs(new - old) >= NOTABLE_BYTES for new, old in zip(seen, before, strict=True)):
                self.seen[name] = seen
                Device.objects.filter(node=self.node, name=name).update(
                    used_bytes=found.used_bytes,
                    used_by_others_bytes=found.used_by_others_bytes,
                    processes={str(pid): count for pid, count in found.processes.items()},
                )

    def _start(self, replica: Replica) -> bool:
        """True: its process is up and loads."""
        key = str(replica.pk)
        try:
            folders = self.files.folders(key, replica.deployment.loaded_versions)
        except Exception as error:  # noqa: BLE001 - whatever it is, the replica says it
            self.files.release(key)
            self._end(replica, ReplicaState.FAILED, in_words(error))
            return False
        if folders is None:
            # They are on their way; the next tick looks again.
            self._tell_fetch(replica)
            return False
        if not self.supervisor.template_ready:
            # Nobody waits for its imports: the other engines, and the lease, need this loop.
            if self.supervisor.template_failure:
                self._end(replica, ReplicaState.FAILED, self.supervisor.template_failure)
            return False
        path = self.log_dir / f"{replica.pk}.log"
        model_path, *draft_path = map(str, folders)
        spec = ReplicaSpec(
            replica=key,
            deployment=replica.deployment.name,
            served_id=replica.deployment.version.served_id,
            model_path=model_path,
            redis_url=settings.REDIS_URL,
            options=engine_options(replica.deployment, draft_path=next(iter(draft_path), None)),
            log_path=str(path),
            drain_s=settings.DRAIN_S,
            warmup_prompts=replica.deployment.warmup_prompts,
            gpus=self._gpus_of(replica),
            forms=settings.COMPILED_DIR,
        )
        try:
            # It runs already if the database was away when that was to be written down.
            pid = self.supervisor.pid_of(key) or self.supervisor.start(spec)
        except OSError as error:
            self._end(replica, ReplicaState.FAILED, f"could not be started: {error}")
            return False
        claimed = self._row(replica, ReplicaState.PENDING).update(
            state=ReplicaState.LOADING, pid=pid, log_path=str(path), started_at=timezone.now()
        )
        if not claimed:
            self.supervisor.kill(key, "its row was closed, or taken by another process, while it was started")
        self.started_with[key] = options_key(replica.deployment)
        log.info("started %s as pid %s", replica, pid)
        return True

    def _gpus_of(self, replica: Replica) -> list[int]:
        names = device_names(replica)
        return [device.index for device in self.devices if device.kind != "cpu" and device.name in names]

    def _tell_fetch(self, replica: Replica) -> None:
        """How far its files are, to the gateways and pages, as its engine will tell of its own load."""
        key = str(replica.pk)
        now = time.monotonic()
        progress = self.files.progress(key)
        if progress is None or now - self._fetch_told_at.get(key, 0.0) < HEARTBEAT_S:
            return
        self._fetch_told_at[key] = now
        beat = ReplicaBeat(
            replica=key,
            deployment=replica.deployment.name,
            worker="",
            state="loading",
            stage="fetching files",
            at=time.time(),
            done_bytes=progress.done_bytes,
            total_bytes=progress.total_bytes,
            left_s=progress.left_s,
        )
        connection().set(beat_key(key), msgspec.json.encode(beat), px=int(STALE_AFTER_S * 1000))
        tell_gateways({"type": "replica.beat", **msgspec.structs.asdict(beat)})

    def _promote_if_ready(self, replica: Replica) -> bool:
        beat = last_beat(str(replica.pk))
        if beat is None or beat.state != "ready":
            since = self.loading_since.setdefault(str(replica.pk), time.monotonic())
            if time.monotonic() - since > settings.LOAD_TIMEOUT_S:
                self.supervisor.kill(
                    str(replica.pk), f"it was not loaded within {settings.LOAD_TIMEOUT_S:g} s"
                )
            return False
        now = timezone.now()
        promoted = self._row(replica, ReplicaState.LOADING).update(
            state=ReplicaState.READY,
            ready_at=now,
            load_seconds=(now - replica.created_at).total_seconds(),
            rungs=beat.rungs,
        )
        started_with = self.started_with.pop(str(replica.pk), None)
        if promoted:
            for version, _ in self.files.held(str(replica.pk)):
                self.suspicion.forget(version)
            # Tries are counted in a row.
            failed = Replica.objects.filter(deployment=replica.deployment_id, state=ReplicaState.FAILED)
            failed.filter(superseded=False).update(superseded=True)
            # Options that were edited meanwhile are not those that it was started with.
            if started_with == options_key(replica.deployment):
                observe_load(replica, beat)
            remember_load(replica, now)
            log.info("%s is ready", replica)
        return True

    def _watch_memory(self, replica: Replica) -> None:
        beat = last_beat(str(replica.pk))
        observation = getattr(replica, "observation", None)
        if beat is not None and beat.memory and observation is not None:
            observe_growth(observation, beat)

    def _move(self, replica: Replica) -> bool:
        """Have it go to the rung that is wished, and write down where it is. True while it is on its way."""
        key = str(replica.pk)
        beat = last_beat(key)
        if beat is None or (beat.rung == replica.wanted_rung and beat.state != "loading"):
            self.moving.pop(key, None)
            if beat is not None and beat.rung != replica.rung:
                self._note_rung(replica, beat)
            return False
        started = self.moving.setdefault(key, time.monotonic())
        if time.monotonic() - started > settings.DRAIN_S + MOVE_TIMEOUT_S:
            self.supervisor.kill(key, f"it did not get from {replica.rung} to {replica.wanted_rung}")
        elif replica.wanted_rung == SERVING:
            tell_replica(key, {"type": "engine.wake"})
        else:
            tell_replica(
                key, {"type": "engine.sleep", "rung": replica.wanted_rung, "deadline_s": settings.DRAIN_S}
            )
        return True

    def _note_rung(self, replica: Replica, beat: ReplicaBeat) -> None:
        known = replica.wake_seconds
        if beat.rung == SERVING and beat.woke_from:
            known = {**known, beat.woke_from: round(beat.woke_s, 3)}
        # While it serves all of it is reserved: the controller has seen to that before it was woken.
        freed = (
            {}
            if beat.rung == SERVING
            else {"reserved_bytes": max(0, replica.serving_bytes - beat.freed_bytes)}
        )
        self._row(replica, ReplicaState.READY).filter(wanted_rung=beat.rung).update(
            rung=beat.rung, host_bytes=beat.host_bytes, wake_seconds=known, **freed
        )
        log.info("%s is %s", replica, beat.rung)
        wake_controller()

    def _stop(self, replica: Replica) -> None:
        key = str(replica.pk)
        if replica.state == ReplicaState.PENDING:
            self._end(replica, ReplicaState.STOPPED, "stopped before it was started")
        elif replica.state != ReplicaState.DRAINING:
            self._drain(key)
            self._row(replica).update(state=ReplicaState.DRAINING)

    def _row(self, replica: Replica, *states: str) -> QuerySet[Replica]:
        """The replica's row, if it is in one of these states (else: alive) and this process speaks for its node."""
        return Replica.objects.filter(
            pk=replica.pk, state__in=states or ALIVE, device__node__epoch=self.epoch
        )

    def _drain(self, replica: str) -> None:
        self.stopping.add(replica)
        self.supervisor.stop(replica, settings.DRAIN_S + KILL_AFTER_DRAIN_S)

    def _on_exit(self, ended: ReplicaExit) -> None:
        self.loading_since.pop(ended.replica, None)
        self.moving.pop(ended.replica, None)
        replica = (
            Replica.objects.select_related("deployment__version__model").filter(pk=ended.replica).first()
        )
        asked = ended.replica in self.stopping
        self._release_jobs(ended.replica, ended.pid, ended.reason)
        self.stopping.discard(ended.replica)
        tell_gateways({"type": "replica.lost", "replica": ended.replica, "reason": ended.reason})
        if replica is None:
            return
        state = ReplicaState.STOPPED if asked else ReplicaState.FAILED
        if not asked and replica.ready_at is None:
            for version, folder in self.files.held(ended.replica):
                self.suspicion.look(ended.replica, version, folder)
        # One that had served is started again at once; only failed loads count towards the backoff.
        self._end(
            replica, state, ended.reason, superseded=replica.ready_at is not None, log_tail=ended.log_tail
        )
        log.log(logging.INFO if asked else logging.ERROR, "%s ended: %s", replica, ended.reason)

    def _release_jobs(self, replica: str, pid: int, reason: str) -> None:
        """RQ's registries must not show a dead engine's jobs as running; the gateways start them anew themselves."""
        try:
            release_dead_worker(connection(), worker_name(replica, pid), reason)
        except redis.RedisError as error:
            # Every new worker releases what was abandoned before it, so this is only later, not never.
            log.warning("could not release the jobs of %s: %s", replica, error)

    def _end(
        self,
        replica: Replica,
        state: ReplicaState,
        reason: str,
        *,
        superseded: bool = False,
        log_tail: str = "",
    ) -> None:
        self.files.release(str(replica.pk))
        self.started_with.pop(str(replica.pk), None)
        self._fetch_told_at.pop(str(replica.pk), None)
        if not self._row(replica).update(
            state=state, reason=reason, log_tail=log_tail, ended_at=timezone.now(), superseded=superseded
        ):
            log.warning("%s had been given up before this was known: %s", replica, reason)
        wake_controller()

    def leave(self) -> None:
        """From now on nothing is started here, and every engine drains; tick until `is_empty`."""
        self.leaving = True
        # Drained whether or not the database answers.
        for replica in self.supervisor.replicas:
            self._drain(replica)
        Node.objects.filter(pk=self.node.pk, epoch=self.epoch).update(leaving=True)

    @property
    def is_empty(self) -> bool:
        """Whether no engine and no news of one is left."""
        return not self.supervisor.replicas and not self.ended


def device_names(replica: Replica) -> set[str]:
    """All devices that it has, or will have."""
    return {replica.device.name, *(device.name for device in replica.more_devices.all())}


def last_beat(replica: str) -> ReplicaBeat | None:
    """A replica's last heartbeat, while it is fresh."""
    raw = connection().get(beat_key(replica))
    return None if raw is None else msgspec.json.decode(raw, type=ReplicaBeat)


def watched_beat(replica: str) -> ReplicaBeat | None:
    """The same for the supervisor, which knows nothing of Redis."""
    try:
        return last_beat(replica)
    except redis.RedisError as error:
        raise ConnectionError(str(error)) from error
