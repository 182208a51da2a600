"""From a flight's events to chunks, for every transport that streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from inference.gateway.answer import Answer
from inference.gateway.chunks import Chunks, usage_of
from inference.gateway.flight import FAILED, GONE, IDLE, RESTARTED, STATUS
from inference.gateway.generation import Generation
from inference.protocol import ACCEPTED, DELTA, DONE
from routing.core.cost import in_usd


class ClientGone(Exception):
    """The client does not wait for its answer any more."""


async def chunks_of(generation: Generation, chunks: Chunks) -> AsyncGenerator[list[bytes], None]:
    """Lists of chunks as they come, the first once an engine has accepted; an empty list is a sign of life.

    While another choice could still take over, the first comes with the first text.

    Ends after the last chunk; raises the error that ended the request, or ClientGone.
    """
    flight, plan = generation.flight, generation.plan
    while True:
        found: list[bytes] = []
        heard = False
        for event in await flight.next():
            kind = event[2]
            if kind == DELTA:
                if not flight.delivered:
                    found += chunks.opening(plan.choices)
                    flight.delivered = True
                found += chunks.delta(event)
            elif kind == STATUS:
                found.append(chunks.status(event[3]))
            elif kind == IDLE or (kind == ACCEPTED and flight.mover is None):
                found += chunks.opening(plan.choices)
                heard = True
            elif kind == DONE:
                if plan.include_usage:
                    usage = usage_of(flight.prompt_tokens, flight.completion_tokens, flight.cached_tokens)
                    if generation.prices.priced:
                        usage["cost_usd"] = in_usd(generation.cost_nano)
                    found.append(chunks.usage(usage))
                flight.committed = True
                yield found
                return
            elif kind == FAILED:
                if found:
                    flight.committed = True
                    yield found
                raise event[3]
            elif kind == GONE:
                raise ClientGone
        if found or heard:
            flight.committed = True
            yield found


async def answer_of(generation: Generation, answer_id: str, created: int) -> bytes:
    """The whole answer; raises the error that ended the request, or ClientGone."""
    answer = Answer(generation.plan)
    while True:
        for event in await generation.flight.next():
            kind = event[2]
            if kind == DELTA:
                answer.delta(event)
            elif kind == DONE:
                return answer.body(answer_id, created, generation.flight)
            elif kind == RESTARTED:
                answer.clear()
            elif kind == FAILED:
                raise event[3]
            elif kind == GONE:
                raise ClientGone
