"""The controller's one idea: make the replicas observed equal to the replicas desired."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from inference.capacity.ladder import SERVING
from inference.capacity.placement import place
from inference.deletion import finish_deletions
from inference.engine.release import release_dead_worker
from inference.engine.rqkeys import worker_name
from inference.fit import forgive, refuse, why_nowhere
from inference.leases import NodeLeases
from inference.memory import device_rooms, need_of
from inference.models import ALIVE, Deployment, Device, Node, Replica, ReplicaState
from inference.notify import connection, fence, tell_gateways, wake_node
from inference.outlook import Outlook
from inference.rungs import is_resting, raise_one, request_stop
from inference.schedules import keep_hot
from inference.swapping import Swapper
from registry.actions.versions import recover_imports
from registry.revision import bump

log = logging.getLogger(__name__)

MAX_TRIES = 5
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
PRELOADS_FIRST_S = 120.0


def backoff_s(tries: int) -> float:
    """Seconds to wait after that many failed loads in a row: 1, 2, 4, ... at most a minute."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (tries - 1))


def reconcile(
    swapper: Swapper | None = None, leases: NodeLeases | None = None, outlook: Outlook | None = None
) -> None:
    """One pass over all deployments."""
    if leases is not None:
        bury_lost_nodes(leases, time.monotonic())
    keep_hot(timezone.now())
    forgive()
    if swapper is not None:
        swapper.step()
    asked_s = swapper.asked_s() if swapper is not None else {}
    preloads_come = Replica.objects.filter(
        deployment__preload=True,
        state__in=(ReplicaState.PENDING, ReplicaState.LOADING),
        stop_requested=False,
        created_at__gt=timezone.now() - timedelta(seconds=PRELOADS_FIRST_S),
    )
    # What is preloaded comes first, and the others wait until it is up, though not for a long fetch.
    for deployment in Deployment.objects.select_related("version__model", "draft__model").order_by(
        "-preload", "name"
    ):
        rows = list(
            deployment.replica_set.filter(state__in=ALIVE, stop_requested=False).select_related(
                "device__node"
            )
        )
        alive = [row for row in rows if not is_resting(row)]
        resting = [row for row in rows if is_resting(row)]
        surplus = alive[deployment.desired :]
        if not deployment.replicas:
            surplus += resting
        for replica in surplus:
            request_stop(replica)
        for _ in range(deployment.desired - len(alive)):
            if raise_one(deployment, resting):
                continue
            if not deployment.preload and preloads_come.exists():
                break
            if not start_one(deployment, asked_s.get(deployment.name, 0.0)):
                break
    if outlook is not None:
        outlook.tell(asked_s)
    finish_deletions()
    recover_imports()


def start_one(deployment: Deployment, waited_s: float = 0.0) -> bool:
    """Reserve memory for one replica and hand it to its node; False when it has to wait.

    ``waited_s``: for how long it has been asked for.
    """
    if deployment.failure:
        return False
    failed = deployment.replica_set.filter(state=ReplicaState.FAILED, superseded=False).order_by("-ended_at")
    tries = failed.count()
    if tries >= MAX_TRIES:
        give_up(deployment, failed.first())
        return False
    last = failed.first()
    if last is not None and last.ended_at is not None:
        again_at = last.ended_at + timedelta(seconds=backoff_s(tries))
        if timezone.now() < again_at:
            return False
    need = need_of(deployment, device_rooms())
    with transaction.atomic():
        # Two controllers may overlap while leadership passes over: the device rows are the lock, and what one of
        # them counted before it had the lock may be wrong by now.
        list(Device.objects.select_for_update().order_by("pk"))
        if not _lacks_one(deployment):
            return False
        rooms = device_rooms()
        placement = place(need, rooms)
        if placement.device_id is None:
            up = deployment.replica_set.filter(state__in=ALIVE, wanted_rung=SERVING)
            alone = not deployment.replica_set.filter(state__in=ALIVE).exists()
            if alone and (nowhere := why_nowhere(need, device_rooms(could_sleep=True))):
                refuse(deployment, nowhere)
                return False
            if deployment.on_demand and not up.exists():
                # It waits as one that is asked for: the swapper makes room.
                asleep = {"asleep": True, "wanted_at": timezone.now()}
                Deployment.objects.filter(pk=deployment.pk, asleep=False).update(**asleep)
            log.warning("%s waits for memory: %s", deployment.name, "; ".join(placement.reasons))
            return False
        chosen = [room for room in rooms if room.id in placement.device_ids]
        replica = Replica.objects.create(
            deployment=deployment,
            device_id=placement.device_id,
            reserved_bytes=need.on(chosen[0]),
            serving_bytes=need.on(chosen[0]),
            waited_s=waited_s,
        )
        replica.more_devices.set(placement.device_ids[1:])
        wake_node(replica.device.node.name)
    log.info("placed %s on %s", replica, replica.device)
    return True


def _lacks_one(deployment: Deployment) -> bool:
    now = Deployment.objects.filter(pk=deployment.pk).first()
    alive = Replica.objects.filter(
        deployment=deployment, state__in=ALIVE, stop_requested=False, wanted_rung=SERVING
    ).count()
    return now is not None and alive < now.desired


def give_up(deployment: Deployment, last: Replica | None) -> None:
    """Nobody waits for what does not come: the gateways refuse at once, with the reason, until it is loaded anew."""
    if deployment.failure:
        return
    reason = (last.reason if last else "") or "the engine ended without a reason"
    failure = f"given up after {MAX_TRIES} tries: {reason}"
    if Deployment.objects.filter(pk=deployment.pk, failure="").update(failure=failure):
        deployment.failure = failure
        bump("deployment.failed", deployment.name, "controller", failure)


def bury_lost_nodes(leases: NodeLeases, now: float) -> None:
    """Replicas of a node that stopped reporting are given up; their memory and their place are free again.

    The node may only be slow, or cut off, and its engines alive: each is fenced first.
    """
    nodes = {node.pk: node for node in Node.objects.exclude(last_seen=None)}
    lost = leases.lost({pk: node.last_seen for pk, node in nodes.items() if node.last_seen}, now)
    for replica in Replica.objects.filter(device__node__in=lost, state__in=ALIVE).select_related("device"):
        node = nodes[replica.device.node_id]
        reason = f"node {node.name} has not reported since {node.last_seen:%H:%M:%S}"
        fence(str(replica.pk))
        if replica.pid is not None:
            release_dead_worker(connection(), worker_name(str(replica.pk), replica.pid), reason)
        Replica.objects.filter(pk=replica.pk, state__in=ALIVE).update(
            state=ReplicaState.FAILED, reason=reason, ended_at=timezone.now(), superseded=True
        )
        tell_gateways({"type": "replica.lost", "replica": str(replica.pk), "reason": reason})
        log.error("%s is given up: %s", replica, reason)
