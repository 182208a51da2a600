"""The budgets' ledgers in Redis: what is spent in the present period, and what is held for requests in flight.

Admission reserves and settlement charges inside their own scripts; here is what they share, and how a ledger that
Redis has lost, or never had, is opened again from the stored usage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from redis.exceptions import RedisError

from inference.gateway.redis_batch import RedisBatch, Script
from inference.gateway.settling import NOBODY
from mmserve.errors import Unavailable
from routing.core.cost import (
    HELD_KEY,
    LEDGERS_KEY,
    NANO,
    BudgetEntry,
    Payers,
    period_label,
    period_start,
)
from routing.core.records import USAGE_STREAM, Spent

log = logging.getLogger(__name__)

SOURCE_TIMEOUT_S = 5.0
# What is held comes back to its budgets, and to its key, this long after the last renewal.
LEASE_S = 30.0
HEARD_FOR_S = 1.0
# With so much left no budget decides who serves a single request.
PLENTY_NANO = 20 * NANO
# Every gateway has heard of a new budget by then: what one settled without it is counted from its record.
LOOK_AGAIN_S = 5.0


SpendSource = Callable[[BudgetEntry, float], Awaitable[Spent]]


class Reservation(NamedTuple):
    """What is held for one job of each of these budgets."""

    job_id: str
    nano: int
    budgets: Payers

    @property
    def member(self) -> str:
        """Its place in the zset of what is held."""
        return f"{self.job_id}|{self.nano}|{self.budgets.joined}"


async def nothing_spent(budget: BudgetEntry, now: float) -> Spent:
    """The source of a gateway without a database."""
    return Spent(0, "0-0")


class Ledgers:
    """Opens and renews. Of many requests that miss one ledger, one opens it."""

    def __init__(self, fast: RedisBatch, source: SpendSource) -> None:
        self._fast = fast
        self._source = source
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._looking: set[asyncio.Task[None]] = set()
        # What this gateway's requests hold; the runtime says it.
        self.in_flight: Callable[[], Iterable[Reservation]] = tuple
        # Members whose admission has not been answered yet: whether they hold anything is for it to say.
        self.asked: set[str] = set()
        self._open = Script("open_ledger")
        self._renew = Script("renew")

    async def open(self, budget: BudgetEntry) -> None:
        """Have the ledger in Redis; Unavailable when the database cannot say what was spent."""
        place = budget.place
        task = self._opening.get(place)
        if task is None:
            task = self._opening[place] = asyncio.create_task(self._open_now(budget))
            task.add_done_callback(lambda _: self._opening.pop(place, None))
        await asyncio.shield(task)

    def _look_again(self, budget: BudgetEntry) -> None:
        task = asyncio.create_task(self._counted_again(budget))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _counted_again(self, budget: BudgetEntry) -> None:
        try:
            await self._open_now(budget, again=True)
        except (Unavailable, RedisError, OSError, TimeoutError) as error:
            log.warning("the %s is not counted again: %s", budget.name, error)

    async def _open_now(self, budget: BudgetEntry, *, again: bool = False) -> None:
        now = time.time()
        try:
            async with asyncio.timeout(SOURCE_TIMEOUT_S):
                spent = await self._source(budget, now)
        # The source is handed in: whatever it raises means that the spending cannot be read now.
        except Exception as error:
            raise Unavailable(
                f"What the {budget.name} has spent cannot be read: no answer from the database.",
                retry_after_s=1.0,
            ) from error
        if not again:
            # What is in flight here is held from the new ledger's first moment on.
            await self.renew([one for one in self.in_flight() if budget in one.budgets], LEASE_S)
        start = period_start(budget.period, now)
        await self._fast.call(
            self._open,
            [LEDGERS_KEY, HELD_KEY, USAGE_STREAM],
            [
                period_label(budget.period, now),
                spent.nano,
                spent.last_id,
                budget.scope.value,
                budget.subject,
                start.timestamp() if start else 0,
                budget.place,
                "again" if again else "",
            ],
        )
        if not again:
            asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again, budget)

    async def renew(self, reservations: Iterable[Reservation], lease_s: float) -> None:
        """Hold on to what is held for requests in flight."""
        members = [one.member for one in reservations if one.nano and one.member not in self.asked]
        if members:
            await self._fast.call(self._renew, [LEDGERS_KEY, HELD_KEY], [lease_s, *members])


class BudgetsLeft:
    """What admissions last heard of budgets that run out: a hint for the router, forgotten after a second.

    The ledger decides. False while every budget has plenty.
    """

    def __init__(self) -> None:
        self._heard: dict[str, tuple[int, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._heard)

    def hear(self, budget: BudgetEntry, nano: int, now: float) -> None:
        """So much is left of it; ``now`` is monotonic."""
        if nano <= PLENTY_NANO:
            self._heard[budget.id] = (nano, now)
        elif self._heard:
            self._heard.pop(budget.id, None)

    def tightest(self, budgets: Iterable[BudgetEntry], now: float) -> tuple[BudgetEntry, int] | None:
        """The one with the least left of those that were heard of lately."""
        found: tuple[BudgetEntry, int] | None = None
        for budget in budgets:
            heard = self._heard.get(budget.id)
            if heard is None or now - heard[1] > HEARD_FOR_S:
                continue
            if found is None or heard[0] < found[1]:
                found = (budget, heard[0])
        return found


def charged(
    reservations: Sequence[Reservation], now: float
) -> tuple[msgspec.Raw, list[tuple[str, int, list[str]]]]:
    """``payers`` and ``held`` of a Settlement: the budgets of these reservations, each once, and what they hold."""
    if not reservations:
        return NOBODY, []
    budgets = reservations[0].budgets
    for one in reservations[1:]:
        if one.budgets is not budgets:
            budgets = Payers({budget.place: budget for budget in (*one.budgets, *budgets)}.values())
    return msgspec.Raw(budgets.told(now)), held_of(reservations)


def held_of(reservations: Iterable[Reservation]) -> list[tuple[str, int, list[str]]]:
    """``held`` of a Settlement: what these hold, of which places."""
    return [(one.member, one.nano, one.budgets.places) for one in reservations if one.nano]
