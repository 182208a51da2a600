"""The node's agent: keeps this machine's engine processes as the replica rows wish, and the rows as they are."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import msgspec
import redis
from django.conf import settings
from django.utils import timezone

from inference.calibration import observe_growth, observe_load
from inference.engine.release import release_dead_worker
from inference.engine.rqkeys import worker_name
from inference.engine_options import engine_options
from inference.models import ALIVE, Device, Node, Replica, ReplicaState
from inference.node.checks import answer_checks
from inference.node.devices import abilities_of, local_devices
from inference.node.files import ReplicaFiles
from inference.node.supervisor import ReplicaExit, ReplicaSupervisor
from inference.notify import connection, tell_gateways, wake_controller
from inference.protocol import ReplicaBeat, ReplicaSpec, beat_key
from registry.fetch.fetcher import in_words
from registry.revision import current

log = logging.getLogger(__name__)

DRAIN_GRACE_S = 30.0
HEARD_EVERY_S = 2.0


class NodeAgent:
    """Owns the supervisor; every `tick` compares rows with processes once."""

    def __init__(self, name: str, supervisor: ReplicaSupervisor) -> None:
        self.supervisor = supervisor
        self.log_dir = Path(settings.DATA_DIR) / "logs" / "replicas"
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.node = Node.objects.update_or_create(name=name, defaults={"last_seen": timezone.now()})[0]
        self.stopping: set[str] = set()
        self.files = ReplicaFiles()
        self._record_devices()
        self._bury_predecessors()

    def _record_devices(self) -> None:
        found = local_devices(settings.MEMORY_BYTES)
        for device in found:
            Device.objects.update_or_create(
                node=self.node,
                name=device.name,
                defaults={
                    "kind": device.kind,
                    "total_bytes": device.total_bytes,
                    "budget_bytes": device.budget_bytes,
                    "abilities": abilities_of(device, found),
                },
            )
        self.node.devices.exclude(name__in=[device.name for device in found]).delete()

    def _bury_predecessors(self) -> None:
        """Engines die with their node (parent-death signal), so what an earlier node left alive in rows is dead."""
        for replica in Replica.objects.filter(device__node=self.node, state__in=ALIVE):
            if replica.pid is not None:
                self._release_jobs(str(replica.pk), replica.pid, "the node was restarted")
            self._end(replica, ReplicaState.FAILED, "the node was restarted", superseded=True)
        # A node that starts anew may well load what the one before it could not.
        Replica.objects.filter(device__node=self.node, state=ReplicaState.FAILED).update(superseded=True)

    def tick(self) -> bool:
        """One comparison. True while something is loading, so that the caller looks again soon."""
        for ended in self.supervisor.poll():
            self._on_exit(ended)
        now = timezone.now()
        heard = self.node.last_seen is None or (now - self.node.last_seen).total_seconds() >= HEARD_EVERY_S
        if heard:
            self.node.last_seen = now
            self.node.template_ready = self.supervisor.template_ready
            self.node.revision = current()
            self.node.save(update_fields=["last_seen", "template_ready", "revision"])
        answer_checks(self.node.name, self.supervisor)
        loading = False
        rows = Replica.objects.filter(device__node=self.node, state__in=ALIVE)
        for replica in rows.select_related("deployment__version__model", "device", "observation"):
            if replica.stop_requested:
                self._stop(replica)
            elif replica.state == ReplicaState.PENDING:
                self._start(replica)
                loading = True
            elif replica.state == ReplicaState.LOADING:
                loading = not self._promote_if_ready(replica, now) or loading
            elif replica.state == ReplicaState.READY and heard:
                self._watch_memory(replica)
        return loading or bool(self.stopping)

    def _start(self, replica: Replica) -> None:
        key = str(replica.pk)
        try:
            folder = self.files.folder(key, replica.deployment.version)
        except Exception as error:  # noqa: BLE001 - whatever it is, the replica says it
            self.files.release(key)
            self._end(replica, ReplicaState.FAILED, in_words(error))
            return
        if folder is None:
            # They are on their way; the next tick looks again.
            return
        path = self.log_dir / f"{replica.pk}.log"
        spec = ReplicaSpec(
            replica=str(replica.pk),
            deployment=replica.deployment.name,
            served_id=replica.deployment.version.served_id,
            model_path=str(folder),
            redis_url=settings.REDIS_URL,
            options=engine_options(replica.deployment),
            log_path=str(path),
        )
        try:
            pid = self.supervisor.start(spec)
        except OSError as error:
            self._end(replica, ReplicaState.FAILED, f"could not be started: {error}")
            return
        Replica.objects.filter(pk=replica.pk).update(state=ReplicaState.LOADING, pid=pid, log_path=str(path))
        log.info("started %s as pid %s", replica, pid)

    def _promote_if_ready(self, replica: Replica, now: datetime) -> bool:
        beat = last_beat(str(replica.pk))
        if beat is None or beat.state != "ready":
            return False
        Replica.objects.filter(pk=replica.pk, state=ReplicaState.LOADING).update(
            state=ReplicaState.READY, ready_at=now, load_seconds=(now - replica.created_at).total_seconds()
        )
        observe_load(replica, beat)
        log.info("%s is ready", replica)
        return True

    def _watch_memory(self, replica: Replica) -> None:
        beat = last_beat(str(replica.pk))
        observation = getattr(replica, "observation", None)
        if beat is not None and beat.memory and observation is not None:
            observe_growth(observation, beat)

    def _stop(self, replica: Replica) -> None:
        key = str(replica.pk)
        if replica.state == ReplicaState.PENDING:
            self._end(replica, ReplicaState.STOPPED, "stopped before it was started")
        elif key not in self.stopping:
            self.stopping.add(key)
            Replica.objects.filter(pk=replica.pk).update(state=ReplicaState.DRAINING)
            self.supervisor.stop(key, DRAIN_GRACE_S)

    def _on_exit(self, ended: ReplicaExit) -> None:
        replica = Replica.objects.select_related("deployment").filter(pk=ended.replica).first()
        asked = ended.replica in self.stopping
        self._release_jobs(ended.replica, ended.pid, ended.reason)
        self.stopping.discard(ended.replica)
        tell_gateways({"type": "replica.lost", "replica": ended.replica, "reason": ended.reason})
        if replica is None:
            return
        state = ReplicaState.STOPPED if asked else ReplicaState.FAILED
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
        Replica.objects.filter(pk=replica.pk).update(
            state=state, reason=reason, log_tail=log_tail, ended_at=timezone.now(), superseded=superseded
        )
        wake_controller()

    def close(self) -> None:
        """Drain every engine, then say in the rows that they ended."""
        self.supervisor.close()
        for replica in Replica.objects.filter(device__node=self.node, state__in=ALIVE):
            self._end(replica, ReplicaState.STOPPED, "the node was stopped")


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
