"""What is not up yet and when it will be: told by the controller to the gateways and pages, learned from each load."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime

import msgspec
import redis
from django.db import transaction

from inference.capacity.eta import PastLoad, with_one_more
from inference.models import Deployment, Replica
from inference.notify import connection, tell_gateways
from inference.protocol import ASKED_KEY, STALE_AFTER_S
from inference.status import ASLEEP, DRAINING, LOADING, statuses

log = logging.getLogger(__name__)

COMING = (LOADING, ASLEEP, DRAINING)
# Each held request wakes the controller; what it tells is not news that often.
AT_MOST_EVERY_S = 0.3


class Outlook:
    """Owned by the controller, which calls it at the end of each pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at = float("-inf")

    def tell(self, asked_s: Mapping[str, float]) -> None:
        """``asked_s``: for how many seconds each deployment has been asked for without being up."""
        now = self._clock()
        if now - self._told_at < AT_MOST_EVERY_S:
            return
        self._told_at = now
        asked_at = {name: time.time() - waited_s for name, waited_s in asked_s.items()}
        try:
            connection().set(ASKED_KEY, msgspec.json.encode(asked_at), ex=int(STALE_AFTER_S))
        except redis.RedisError as error:
            log.warning("who is asked for cannot be told: %s", error)
        wished = Deployment.objects.filter(replicas__gt=0).select_related("version__model")
        rows = {row.version_id: row for row in wished}
        found = statuses(row.version for row in rows.values())
        coming = {
            rows[version].name: {
                "status": status.status,
                "stage": status.stage or status.reason,
                "eta_s": status.eta_s,
                "done_bytes": status.done_bytes,
                "total_bytes": status.total_bytes,
            }
            for version, status in found.items()
            if status.status in COMING
        }
        if coming:
            tell_gateways({"type": "deployments.outlook", "deployments": coming})


@transaction.atomic
def remember_load(replica: Replica, ready_at: datetime) -> None:
    """A replica came up: what its stages took is what the next one of its deployment is expected to take."""
    started_at = replica.started_at or replica.created_at
    load = PastLoad(
        wait_s=replica.waited_s,
        fetch_s=(started_at - replica.created_at).total_seconds(),
        load_s=(ready_at - started_at).total_seconds(),
    )
    row = Deployment.objects.select_for_update().get(pk=replica.deployment_id)
    row.past_loads = with_one_more(row.past_loads, load)
    row.save(update_fields=["past_loads"])
