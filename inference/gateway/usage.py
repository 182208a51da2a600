"""What a request may cost, what it has cost, and the record of it that goes to the stream ``mmserve:usage``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inference.gateway.declining import is_refusal
from inference.gateway.flight import Flight
from inference.gateway.plan import DEFAULT_RESERVED_OUTPUT, Plan, estimate_tokens, most_prompt_tokens
from routing.core.cost import NO_PRICE, Prices
from routing.core.records import USAGE_STREAM, UsageRecord
from routing.core.table import DeploymentEntry

if TYPE_CHECKING:
    from inference.gateway.generation import Generation

__all__ = ["USAGE_STREAM", "UsageRecord", "cost_nano", "most_cost_nano", "record_of", "record_of_lost"]

COMPLETED, CANCELLED = "completed", "cancelled"
CLIENT_GONE = 499  # the status of what nobody waited for


def most_cost_nano(plan: Plan, prices: Prices, deployment: DeploymentEntry) -> int:
    """The most that a request can cost: what is reserved of its budgets. Without max_tokens, the whole context."""
    if not prices.priced:
        return 0
    limits = deployment.limits
    output = plan.sampling.max_tokens or limits.max_output_tokens or limits.context_length
    return prices.cost_nano(
        prompt_tokens=most_prompt_tokens(plan) if prices.by_tokens else 0,
        completion_tokens=(output or DEFAULT_RESERVED_OUTPUT) * plan.choices,
        engine_s=limits.default_deadline_s,
        devices=deployment.devices,
    )


def cost_nano(flight: Flight, prices: Prices, outcome: str = COMPLETED, *, running: int = 0) -> int:
    """What a request costs by now; a failure of ours costs nothing, unless the client has text of it.

    A cancelled one pays for what was made. Its share of engine time was not told: it is what passed since an
    engine took it, shared with the ``running`` streams that the replica last spoke of.
    """
    if not prices.priced or not (outcome in (COMPLETED, CANCELLED) or flight.delivered):
        return 0
    return _made_nano(flight, prices, flight.prompt_tokens, flight.completion_tokens, running)


def _made_nano(
    flight: Flight, prices: Prices, prompt_tokens: int, completion_tokens: int, running: int
) -> int:
    engine_s = flight.engine_s
    if not engine_s and flight.accepted_at is not None and not prices.by_tokens:
        streams = flight.plan.choices
        engine_s = (time.monotonic() - flight.accepted_at) * streams / max(streams, running)
    return prices.cost_nano(
        prompt_tokens=prompt_tokens,
        cached_tokens=min(flight.cached_tokens, prompt_tokens),
        completion_tokens=completion_tokens,
        engine_s=engine_s,
        devices=flight.deployment.devices,
    )


def record_of(generation: Generation, *, outcome: str, status: int, cost: int) -> UsageRecord:
    """The record of a request that was admitted."""
    flight, now = generation.flight, time.monotonic()
    first = flight.first_token_at
    made = flight.completion_tokens
    return UsageRecord(
        request_id=generation.request_id,
        key=flight.grant.id,
        team=flight.grant.team,
        model=generation.plan.model,
        route=generation.route,
        assignments=generation.assignments,
        units=generation.units,
        refusal=flight.opening is not None and is_refusal(flight.opening),
        served_id=flight.deployment.served_id,
        deployment=flight.deployment.id,
        endpoint=generation.plan.endpoint,
        outcome=outcome,
        status=status,
        at=time.time(),
        stream=generation.plan.stream,
        prompt_tokens=flight.prompt_tokens,
        completion_tokens=made,
        cached_tokens=flight.cached_tokens,
        attempts=flight.attempt,
        fallbacks=generation.fallbacks,
        queued_s=flight.queued_s,
        ttft_s=first - flight.begun_at if first is not None else 0.0,
        tpot_s=(now - first) / (made - 1) if first is not None and made > 1 else 0.0,
        e2e_s=now - flight.begun_at,
        engine_s=flight.engine_s,
        cost_nano=cost,
    )


def record_of_lost(generation: Generation, loser: Flight, *, running: int) -> UsageRecord:
    """The record of an attempt that gave way to another one: nobody has its text, and no key pays for it."""
    version = generation.table.versions.get(loser.deployment.served_id)
    prices = version.prices if version else NO_PRICE
    made = loser.completion_tokens or len(loser.tokens)
    prompt = loser.prompt_tokens
    if not prompt:
        # It was in the midst of it.
        alike = generation.flight.deployment.served_id == loser.deployment.served_id
        prompt = (alike and generation.flight.prompt_tokens) or estimate_tokens(generation.plan)
    cost = _made_nano(loser, prices, prompt, made, running) if prices.priced else 0
    return UsageRecord(
        request_id=loser.job_id,
        key="",
        model=generation.plan.model,
        route=generation.route,
        served_id=loser.deployment.served_id,
        deployment=loser.deployment.id,
        endpoint=generation.plan.endpoint,
        outcome=CANCELLED,
        status=CLIENT_GONE,
        at=time.time(),
        stream=generation.plan.stream,
        count=0,
        prompt_tokens=prompt,
        completion_tokens=made,
        cost_nano=cost,
        other_cost_nano=cost,
    )
