"""Shadow: a copy of some requests goes to an arm whose answer nobody waits for.

Only on spare capacity, at the lowest priority, under a budget of tokens a day, and never in the way of the request
itself: whatever happens to the copy is only written down. A pair counts once its copy was admitted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.exceptions import RedisError

from inference.gateway.admission import Refused
from inference.gateway.auth import INFER, KeyGrant
from inference.gateway.live import LiveState
from inference.gateway.plan import estimate_tokens
from inference.gateway.streaming import ClientGone, answer_of
from inference.gateway.tasks import cancel_all
from mmserve.errors import MmserveError
from routing.core.assignment import Assignment
from routing.core.records import shadow_key
from routing.core.table import RoutingTable

if TYPE_CHECKING:
    from inference.gateway.generation import Generation, Generator

log = logging.getLogger(__name__)

# Who pays: nobody's key. Its usage is listed under this name.
SHADOW = KeyGrant(id="shadow", name="shadow", scopes=frozenset({INFER}))
MOST_AT_ONCE = 8
# A replica has room to spare below this part of its streams, and when nothing waits.
SPARE = 0.5
SPENT_KEPT_S = 2 * 86_400


class Mirror:
    """Owned by the event loop. ``consider()`` costs a look-up; what it starts, ``stop()`` ends."""

    def __init__(
        self, generator: Generator, table: Callable[[], RoutingTable], live: LiveState, redis: Redis
    ) -> None:
        self._generator = generator
        self._table = table
        self._live = live
        self._redis = redis
        self._tasks: set[asyncio.Task[None]] = set()
        self._spent: dict[str, int] = {}  # tokens by counter, as last heard from Redis

    def consider(self, original: Generation) -> None:
        """Mirror an admitted request, if it is one of those that are mirrored and there is room."""
        table = self._table()
        if not table.experiments.mirrors or original.plan.choices > 1:
            return
        found = table.experiments.mirror(original.plan.model, original.facts)
        if found is None or found.served_id is None or len(self._tasks) >= MOST_AT_ONCE:
            return
        if not self._room_for(table, found.served_id):
            return
        key = shadow_key(found.experiment_name, time.time())
        if self._spent.get(key, 0) >= found.tokens_per_day:
            return
        task = asyncio.create_task(self._run(original, found, key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Forget the copies in flight."""
        await cancel_all(list(self._tasks))

    def _room_for(self, table: RoutingTable, served_id: str) -> bool:
        version = table.versions.get(served_id)
        loads = [self._live.loads.get(one) for one in version.deployments] if version else []
        return any(
            load is not None and load.ready and not load.waiting and load.running < SPARE * load.max_streams
            for load in loads
        )

    async def _run(self, original: Generation, found: Assignment, key: str) -> None:
        try:
            if key not in self._spent:
                # The first of the day in this process: others may have spent already.
                self._spent[key] = int(await self._redis.get(key) or 0)
                if self._spent[key] >= found.tokens_per_day:
                    return
            await self._copy(original, found, key)
        except (MmserveError, Refused, RedisError, OSError, ClientGone) as error:
            log.info("a copy for %s was dropped: %s", found.experiment_name, error)

    async def _copy(self, original: Generation, found: Assignment, key: str) -> None:
        plan = dataclasses.replace(
            original.plan, model=found.served_id or "", stream=False, include_usage=False, priority="low"
        )
        copy = await self._generator.open(plan, SHADOW)
        outcome, status = "cancelled", 499
        try:
            if original.flight.over:
                return  # too late to be one of a pair
            unit = f"{found.phase}.{found.unit:016x}"
            original.expose(found.experiment_name, found.control, unit)
            copy.expose(found.experiment_name, found.arm_name, unit)
            await answer_of(copy, "", 0)
            outcome, status = "completed", 200
        except MmserveError as error:
            outcome, status = error.error_code or "error", error.status
            raise
        finally:
            await self._generator.close(copy, outcome=outcome, status=status)
            used = copy.flight.prompt_tokens + copy.flight.completion_tokens or estimate_tokens(plan)
            await self._spend(key, used)

    async def _spend(self, key: str, tokens: int) -> None:
        self._spent[key] = int(await self._redis.incrby(key, tokens))
        await self._redis.expire(key, SPENT_KEPT_S)
        if len(self._spent) > 1000:
            self._spent = {key: self._spent[key]}
