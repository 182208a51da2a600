"""Admission and dispatch: one Redis round trip that checks every limit and enqueues the job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from inference.gateway.auth import KeyGrant
from inference.gateway.config import GatewayConfig
from inference.gateway.fullness import Fullness
from inference.gateway.holding import Hold
from inference.gateway.ledger import (
    LEASE_S,
    BudgetsLeft,
    Ledgers,
    Reservation,
    SpendSource,
    charged,
    held_of,
    nothing_spent,
)
from inference.gateway.redis_batch import RedisBatch, Script
from inference.gateway.rqjob import QUEUES_KEY, job_fields, job_key, queue_key
from inference.gateway.settling import Settlement, Settler
from inference.gateway.usage import UsageRecord
from inference.protocol import CONTROLLER_CHANNEL, PRIORITIES, GenerateRequest, bell_key, queue_name
from mmserve.errors import InsufficientQuota, MmserveError, QueueFull, RateLimitExceeded
from routing.core.cost import HELD_KEY, LEDGERS_KEY, NOBODY_PAYS, BudgetEntry, Period, in_usd
from routing.core.table import DeploymentEntry

encode = msgspec.json.Encoder().encode
pack = msgspec.msgpack.Encoder().encode

RENEW_LEASES_S = 10.0
MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0
# What a client is told to wait for a full queue when no finished job has been measured yet.
UNKNOWN_DRAIN_S = 5.0
BUDGET_AGAIN = {
    Period.DAY: "It begins anew at midnight UTC.",
    Period.MONTH: "It begins anew on the 1st, UTC.",
}


class Rates(msgspec.Struct, frozen=True):
    """What is left of a key's minute, for the ``x-ratelimit-*`` headers."""

    requests_limit: int | None
    requests_left: int
    requests_reset_ms: int
    tokens_limit: int | None
    tokens_left: int
    tokens_reset_ms: int


NO_RATES = Rates(None, 0, 0, None, 0, 0)


def rate_key(grant_id: str) -> str:
    """Redis hash with a key's token buckets."""
    return f"mmserve:rate:{grant_id}"


def lease_key(grant_id: str) -> str:
    """Redis zset of a key's requests in flight, scored by when their lease ends."""
    return f"mmserve:inflight:{grant_id}"


class Admission:
    """Writes jobs, which is waited for, and settles them, which is not."""

    def __init__(
        self,
        redis: Redis,
        config: GatewayConfig,
        *,
        fast: RedisBatch,
        settler: Settler,
        spend_source: SpendSource = nothing_spent,
    ) -> None:
        self._config = config
        self.ledgers = Ledgers(fast, spend_source)
        self.left = BudgetsLeft()
        self._redis = redis
        self._fast = fast
        self.settler = settler
        self._admit = Script("admit")
        self._wake = Script("wake")
        self._withdraw = Script("withdraw")
        self._whereabouts = Script("whereabouts")
        self.fullness = Fullness()

    def refuse_if_full(
        self, deployment: DeploymentEntry, hold: Hold | None, drain_per_s: float, now: float
    ) -> None:
        """Refused without a round trip, where this process knows that there is no place; ``now`` is monotonic."""
        waiting = self.waiting_if_full(deployment, hold, now)
        if waiting is not None:
            raise Refused(full(waiting, deployment, hold, drain_per_s), NO_RATES)

    def waiting_if_full(
        self, deployment: DeploymentEntry, hold: Hold | None, now: float, *, for_last: bool = False
    ) -> int | None:
        """How many wait, if there is no place for one more; see Fullness.full."""
        return self.fullness.full(deployment.id, _bound(deployment, hold), now, for_last=for_last)

    async def admit(
        self,
        request: GenerateRequest,
        *,
        job_id: str,
        grant: KeyGrant,
        deployment: DeploymentEntry,
        reserved_tokens: int,
        drain_per_s: float,
        now: float,
        replaces: str = "",
        hold: Hold | None = None,
        reservation: Reservation | None = None,
        released: Sequence[Reservation] = (),
        bill: Reservation | None = None,
        prefers: str = "",
    ) -> Rates:
        """Enqueue the job, in place of ``replaces`` if given; Refused has the 429 in its way.

        ``hold``: nothing is up that would run it now. ``released``: what is held for an attempt that is over; if this
        one is admitted it goes to ``reservation``, and only ``bill`` stays held. ``prefers``: the replica that may
        take it first.
        """
        budgets = reservation.budgets if reservation else NOBODY_PAYS
        queue = queue_name(deployment.id, request.priority)
        fields = job_fields(
            request,
            job_id=job_id,
            queue=queue,
            now=now,
            timeout_s=max(1, int(request.deadline - now) + 1),
            result_ttl_s=self._config.result_ttl_s,
            failure_ttl_s=self._config.failure_ttl_s,
        )
        keys: list[Any] = [
            rate_key(grant.id),
            lease_key(grant.id),
            job_key(job_id),
            queue_key(queue),
            QUEUES_KEY,
            bell_key(deployment.id),
            *(queue_key(queue_name(deployment.id, priority)) for priority in PRIORITIES),
        ]
        args = [
            job_id,
            request.request_id,
            LEASE_S,
            grant.requests_per_minute or 0,
            grant.tokens_per_minute or 0,
            reserved_tokens,
            grant.max_concurrency or 0,
            _bound(deployment, hold),
            replaces,
            grant.id,
            reservation.nano if reservation else 0,
            budgets.told(now) if budgets else b"",
            prefers,
            self._config.affinity_wait_s,
            pack([bill.member if bill else "", *(one.member for one in released)])
            if released or bill
            else b"",
            *fields,
        ]
        if budgets:
            keys += (LEDGERS_KEY, HELD_KEY)
        waiting: int | None = None
        self.fullness.ask(deployment.id)
        asked = {one.member for one in (*released, reservation) if one} if budgets else set()
        self.ledgers.asked |= asked
        try:
            answer = await self._fast.call(self._admit, keys, args)
            while answer[0] == b"ledger":  # Redis has lost it, or never had it: once a budget at most
                await self.ledgers.open(budgets[answer[7] - 1])
                answer = await self._fast.call(self._admit, keys, args)
            waiting = answer[6] + (answer[0] == b"ok")
        finally:
            self.fullness.answered(deployment.id, waiting, time.monotonic())
            self.ledgers.asked -= asked
        verdict, wait_ms, requests_left, requests_reset_ms, tokens_left, tokens_reset_ms, *why = answer
        before, at, nano_left = why
        rates = Rates(
            grant.requests_per_minute,
            max(0, requests_left),
            requests_reset_ms,
            grant.tokens_per_minute,
            max(0, tokens_left),
            tokens_reset_ms,
        )
        if at:
            self.left.hear(budgets[at - 1], nano_left, time.monotonic())
        if verdict == b"budget":
            assert reservation is not None
            raise Refused(_over_budget(budgets[at - 1], reservation.nano, nano_left), rates)
        if verdict != b"ok":
            if verdict == b"queue":
                raise Refused(full(before, deployment, hold, drain_per_s), rates)
            raise Refused(_limited(verdict, wait_ms / 1000, grant), rates)
        return rates

    def wake_controller(self) -> None:
        """Let the controller look at the queues now; it looks by itself every second."""
        self._fast.post(self._wake, [], [CONTROLLER_CHANNEL])

    def settle(
        self,
        grant: KeyGrant,
        record: UsageRecord,
        *,
        reserved_tokens: int,
        used_tokens: int,
        reservations: Sequence[Reservation] = (),
        decision_id: str = "",
        decision: bytes = b"",
    ) -> None:
        """Refund, release, charge and record, in the background."""
        payers, held = charged(reservations, time.time())
        self.settler.post(
            Settlement(
                rate_key=rate_key(grant.id),
                lease_key=lease_key(grant.id),
                lease_member=record.request_id,
                tokens_per_minute=grant.tokens_per_minute or 0,
                reserved_tokens=reserved_tokens,
                used_tokens=used_tokens,
                record=encode(record).decode(),
                cost_nano=record.cost_nano,
                payers=payers,
                held=held,
                decision_id=decision_id,
                decision=decision.decode(),
            )
        )

    def note(
        self,
        record: UsageRecord | None = None,
        *,
        decision_id: str = "",
        decision: bytes = b"",
        reservations: Sequence[Reservation] = (),
        released: Sequence[Reservation] = (),
    ) -> None:
        """Record what no key pays for: what was refused cost nothing, and the rest is on these budgets.

        ``released`` only give back what is held of theirs.
        """
        payers, held = charged(reservations, time.time())
        held += held_of(released)
        self.settler.post(
            Settlement(
                record=encode(record).decode() if record else "",
                cost_nano=record.cost_nano if record else 0,
                payers=payers,
                held=held,
                decision_id=decision_id,
                decision=decision.decode(),
            )
        )

    async def withdraw(self, job_id: str, queue: str, deployment: str) -> bool:
        """Take a waiting job back; False when an engine has it already."""
        taken = bool(await self._fast.call(self._withdraw, [queue_key(queue), job_key(job_id)], [job_id]))
        if taken:
            self.fullness.left(deployment)
        return taken

    async def whereabouts(self, job_id: str, queue: str) -> tuple[bool, str, str]:
        """Whether a job still waits in its queue, its RQ status, and the name of its worker."""
        waiting, status, worker = await self._fast.call(
            self._whereabouts, [queue_key(queue), job_key(job_id)], [job_id]
        )
        return bool(waiting), status.decode(), worker.decode()

    async def renew(self, leases: dict[str, list[str]], now: float, *, forgotten: bool = False) -> None:
        """Keep the leases of the requests in flight: key id to request ids; take them again if Redis has lost them."""
        pipe = self._redis.pipeline(transaction=False)
        for grant_id, members in leases.items():
            pipe.zadd(lease_key(grant_id), dict.fromkeys(members, now + LEASE_S), xx=not forgotten)
            pipe.expire(lease_key(grant_id), int(LEASE_S))
        await pipe.execute()


class Refused(Exception):
    """Admission said no: the error for the client and what is left of its rates."""

    def __init__(self, error: MmserveError, rates: Rates) -> None:
        super().__init__(error.message)
        self.error = error
        self.rates = rates


def _over_budget(budget: BudgetEntry, cost_nano: int, left_nano: int) -> InsufficientQuota:
    left = in_usd(left_nano) if left_nano > 0 else "0"
    needs = f"this request may cost up to ${in_usd(cost_nano)}, and ${left} of ${in_usd(budget.limit_nano)} is left."
    hint = " A smaller max_tokens costs less." if 0 < left_nano < cost_nano else ""
    again = f" {BUDGET_AGAIN[budget.period]}" if budget.period in BUDGET_AGAIN else ""
    refusal = InsufficientQuota(f"The {budget.name} cannot pay: {needs}{hint}{again}")
    refusal.is_used_up = left_nano <= 0
    return refusal


def _bound(deployment: DeploymentEntry, hold: Hold | None) -> int:
    """How many may wait: for a place in the batch, or for the model to come up."""
    return deployment.limits.queue_bound if hold is None else deployment.limits.hold_bound


def full(waiting: int, deployment: DeploymentEntry, hold: Hold | None, drain_per_s: float) -> QueueFull:
    """The refusal of one more than may wait."""
    if hold is not None:
        return hold.full(waiting)
    bound = deployment.limits.queue_bound
    drain_s = (waiting - bound + 1) / drain_per_s if drain_per_s > 0 else UNKNOWN_DRAIN_S
    pace = f"{drain_per_s:.2g} a second" if drain_per_s > 0 else "a pace not measured yet"
    return QueueFull(
        f"The queue of {deployment.served_id} is full: {waiting} requests wait, {bound} may; "
        f"it drains at {pace}.",
        retry_after_s=min(MAX_RETRY_S, max(MIN_RETRY_S, drain_s)),
    )


def _limited(verdict: bytes, wait_s: float, grant: KeyGrant) -> RateLimitExceeded:
    if verdict == b"requests":
        what: Any = f"{grant.requests_per_minute} requests a minute"
    elif verdict == b"tokens":
        what = f"{grant.tokens_per_minute} tokens a minute"
    else:
        what = f"{grant.max_concurrency} requests at once"
    return RateLimitExceeded(
        f"The access key {grant.name!r} is limited to {what}.", retry_after_s=max(wait_s, 0.001)
    )
