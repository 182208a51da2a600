"""The controller's one idea: make the replicas observed equal to the replicas desired."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from inference.capacity.placement import place
from inference.deletion import finish_deletions
from inference.memory import NODE_LOST_AFTER_S, device_rooms, estimate_for
from inference.models import ALIVE, Deployment, Device, Node, Replica, ReplicaState
from inference.notify import tell_gateways, wake_node
from inference.swapping import Swapper
from registry.actions.versions import recover_imports
from registry.revision import bump

log = logging.getLogger(__name__)

MAX_TRIES = 5
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0


def backoff_s(tries: int) -> float:
    """Seconds to wait after that many failed loads in a row: 1, 2, 4, ... at most a minute."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (tries - 1))


def reconcile(swapper: Swapper | None = None) -> None:
    """One pass over all deployments."""
    bury_lost_nodes()
    if swapper is not None:
        swapper.step()
    for deployment in Deployment.objects.select_related("version__model"):
        alive = list(
            deployment.replica_set.filter(state__in=ALIVE, stop_requested=False).select_related(
                "device__node"
            )
        )
        for replica in alive[deployment.desired :]:
            request_stop(replica)
        for _ in range(deployment.desired - len(alive)):
            if not start_one(deployment):
                break
    finish_deletions()
    recover_imports()


def start_one(deployment: Deployment) -> bool:
    """Reserve memory for one replica and hand it to its node; False when it has to wait."""
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
    needed = estimate_for(deployment)
    with transaction.atomic():
        # Two controllers may overlap while leadership passes over: the device rows are the lock.
        list(Device.objects.select_for_update().order_by("pk"))
        placement = place(needed.total_bytes, device_rooms())
        if placement.device_id is None:
            if deployment.on_demand and not deployment.replica_set.filter(state__in=ALIVE).exists():
                # It waits as one that is asked for: the swapper makes room.
                asleep = {"asleep": True, "wanted_at": timezone.now()}
                Deployment.objects.filter(pk=deployment.pk, asleep=False).update(**asleep)
            log.warning("%s waits for memory: %s", deployment.name, "; ".join(placement.reasons))
            return False
        replica = Replica.objects.create(
            deployment=deployment, device_id=placement.device_id, reserved_bytes=needed.total_bytes
        )
        wake_node(replica.device.node.name)
    log.info("placed %s on %s", replica, replica.device)
    return True


def give_up(deployment: Deployment, last: Replica | None) -> None:
    """Nobody waits for what does not come: the gateways refuse at once, with the reason, until it is loaded anew."""
    if deployment.failure:
        return
    reason = (last.reason if last else "") or "the engine ended without a reason"
    failure = f"given up after {MAX_TRIES} tries: {reason}"
    if Deployment.objects.filter(pk=deployment.pk, failure="").update(failure=failure):
        deployment.failure = failure
        bump("deployment.failed", deployment.name, "controller", failure)


def request_stop(replica: Replica) -> None:
    """Ask the node to drain and stop a replica."""
    Replica.objects.filter(pk=replica.pk).update(stop_requested=True)
    wake_node(replica.device.node.name)
    log.info("asked for the stop of %s", replica)


def bury_lost_nodes() -> None:
    """Replicas of a node that stopped reporting are lost; their memory and their place are free again."""
    cutoff = timezone.now() - timedelta(seconds=NODE_LOST_AFTER_S)
    for node in Node.objects.filter(last_seen__lt=cutoff, devices__replicas__state__in=ALIVE).distinct():
        for replica in Replica.objects.filter(device__node=node, state__in=ALIVE):
            reason = f"node {node.name} has not reported since {node.last_seen:%H:%M:%S}"
            Replica.objects.filter(pk=replica.pk, state__in=ALIVE).update(
                state=ReplicaState.FAILED, reason=reason, ended_at=timezone.now(), superseded=True
            )
            tell_gateways({"type": "replica.lost", "replica": str(replica.pk), "reason": reason})
