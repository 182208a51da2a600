"""What the replicas last said of themselves, in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from inference.loads import LOADING, READY, load_of
from inference.protocol import STALE_AFTER_S, Outlook, ReplicaBeat
from routing.core.live import DeploymentLoad, Latency, LiveColumns
from routing.core.table import RoutingTable

log = logging.getLogger(__name__)

ASLEEP = "asleep"
MAX_REPLICAS = 10_000


class LiveState:
    """Replicas by id, from beats; ``now`` is this process's monotonic clock: hosts' clocks do not matter."""

    def __init__(self) -> None:
        self._beats: dict[str, tuple[ReplicaBeat, float]] = {}
        self._loads: dict[str, DeploymentLoad] = {}
        self._ready: dict[str, list[ReplicaBeat]] = {}
        self._columns: LiveColumns | None = None
        self._outlooks: dict[str, tuple[Outlook, float]] = {}
        self._news = asyncio.Event()
        self._settled = False
        # By replica, in order of age: what was given up does not come back, whatever it still says.
        self._fenced: dict[str, None] = {}

    @property
    def settled(self) -> bool:
        """Whether this process has listened long enough to have heard of every replica."""
        return self._settled

    def settle(self) -> None:
        """From now on, a replica that was not heard of is not there."""
        self._settled = True
        self._news.set()

    async def news(self) -> None:
        """Wait for the next beat, or for the settling, which comes within a few heartbeats."""
        self._news.clear()
        await self._news.wait()

    @property
    def loads(self) -> Mapping[str, DeploymentLoad]:
        """The load of each deployment that has a replica which is heard of."""
        return self._loads

    def drain_per_s(self, deployment: str) -> float:
        """How many jobs a second its replicas finish; 0 while that is not known."""
        load = self._loads.get(deployment)
        return load.jobs_per_s if load else 0.0

    def columns(self, table: RoutingTable) -> LiveColumns:
        """The same as the core's columns; a new table takes over what was known under the one before."""
        known = self._columns
        if known is None:
            known = self._columns = table.columns(self._loads)
            for name, (outlook, _) in self._outlooks.items():
                known.expect(name, outlook.eta_s)
        elif known.rows is not table.rows:
            self._columns = table.columns()
            self._columns.take_over(known)
            known = self._columns
        return known

    def set_breaker(self, deployment: str, is_open: bool) -> None:
        """Whether a deployment's circuit breaker lets nothing pass."""
        if self._columns is not None:
            self._columns.set_breaker(deployment, is_open)

    def learn(self, deployment: str, latency: Latency | None) -> None:
        """How long a deployment takes, as learned."""
        if self._columns is not None:
            self._columns.learn(deployment, latency)

    def beat(self, message: Mapping[str, Any], now: float) -> None:
        """A ``replica.beat`` arrived."""
        try:
            beat = msgspec.convert(message, ReplicaBeat)
        except msgspec.ValidationError as error:
            log.warning("a replica's beat is malformed: %s", error)
            return
        if beat.replica in self._fenced:
            return
        if beat.replica not in self._beats and len(self._beats) >= MAX_REPLICAS:
            log.error("more than %d replicas send beats; %s is ignored", MAX_REPLICAS, beat.replica)
            return
        self._beats[beat.replica] = (beat, now)
        self._sum_up(beat.deployment)
        self._news.set()

    def lost(self, replica: str) -> None:
        """A ``replica.lost`` arrived: its node saw it die, or it was given up with its node."""
        self._fenced[replica] = None
        if len(self._fenced) > MAX_REPLICAS:
            del self._fenced[next(iter(self._fenced))]
        self._forget(replica)

    def is_fenced(self, replica: str) -> bool:
        """Whether what this replica says is to be ignored."""
        return replica in self._fenced

    def _forget(self, replica: str) -> None:
        gone = self._beats.pop(replica, None)
        if gone is not None:
            self._sum_up(gone[0].deployment)

    def prune(self, now: float) -> None:
        """Forget replicas that have not been heard of for STALE_AFTER_S."""
        for replica, (_, heard_at) in list(self._beats.items()):
            if now - heard_at > STALE_AFTER_S:
                self._forget(replica)
        if any(now - told_at > STALE_AFTER_S for _, told_at in self._outlooks.values()):
            self.foresee({}, now)

    def alive(self, replica: str) -> bool:
        """Whether a replica is heard of."""
        return replica in self._beats

    def replicas(self, deployment: str) -> list[str]:
        """The replicas of a deployment that may hold jobs: ready or draining."""
        return [
            replica
            for replica, (beat, _) in self._beats.items()
            if beat.deployment == deployment and beat.state != LOADING
        ]

    def ready(self, deployment: str) -> Sequence[ReplicaBeat]:
        """The last beats of the replicas of a deployment that take jobs."""
        return self._ready.get(deployment, ())

    def replica_of(self, worker: str) -> str:
        """The replica with this RQ worker name; "" if none is heard of."""
        return next((replica for replica, (beat, _) in self._beats.items() if beat.worker == worker), "")

    def worker_alive(self, worker: str) -> bool:
        """Whether the replica with this RQ worker name is heard of."""
        return bool(self.replica_of(worker))

    def loading(self, deployment: str) -> ReplicaBeat | None:
        """The last beat of a replica of the deployment that loads."""
        for beat, _ in self._beats.values():
            if beat.deployment == deployment and beat.state == LOADING:
                return beat
        return None

    def foresee(self, outlooks: Mapping[str, Any], now: float) -> None:
        """A ``deployments.outlook`` arrived: all that is wished for and not up."""
        try:
            found = msgspec.convert(outlooks, dict[str, Outlook])
        except msgspec.ValidationError as error:
            log.warning("an outlook is malformed: %s", error)
            return
        gone = self._outlooks.keys() - found.keys()
        self._outlooks = {name: (outlook, now) for name, outlook in found.items()}
        if self._columns is not None:
            for name, outlook in found.items():
                self._columns.expect(name, outlook.eta_s)
            for name in gone:
                self._columns.expect(name, None)

    def outlook(self, deployment: str, now: float) -> Outlook | None:
        """When a deployment is expected to be up, as of now; None if the controller does not tell."""
        outlook, told_at = self._outlooks.get(deployment, (None, 0.0))
        if outlook is None or now - told_at > STALE_AFTER_S:
            return None
        # One that nobody waits for yet does not come nearer.
        passed_s = 0.0 if outlook.status == ASLEEP or outlook.eta_s is None else now - told_at
        eta_s = None if outlook.eta_s is None else max(0.0, outlook.eta_s - passed_s)
        return msgspec.structs.replace(outlook, eta_s=eta_s)

    def _sum_up(self, deployment: str) -> None:
        beats = [beat for beat, _ in self._beats.values() if beat.deployment == deployment]
        if not beats:
            self._loads.pop(deployment, None)
            self._ready.pop(deployment, None)
            if self._columns is not None:
                self._columns.note(deployment, None)
            return
        load = self._loads[deployment] = load_of(beats)
        self._ready[deployment] = [beat for beat in beats if beat.state == READY]
        if self._columns is not None:
            self._columns.note(deployment, load)
