"""A daphne that is told to stop: it refuses what comes, and lets what runs finish.

daphne's own ``kill_all_applications`` cancels them at once (and fails on a connection whose request is still being
read). Twisted waits for what it returns, still listening, before it closes connections, and so drops nothing of
what has been written.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, reactor

from inference.gateway.runtime import GatewayRuntime

log = logging.getLogger(__name__)

LOOK_S = 0.02
# How long those that were cut may take to tell their clients, and to settle.
LAST_WORDS_S = 3.0


def stop_of(runtime: GatewayRuntime) -> Callable[[Any], Any]:
    """What daphne's server calls when its reactor begins to stop; a second signal ends the waiting."""

    def kill_all_applications(server: Any) -> Any:
        loop, hurry = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(hurry.set))
        ended = defer.Deferred.fromFuture(asyncio.ensure_future(leave(server, runtime, hurry)))
        ended.addErrback(lambda failure: log.error("the stop failed: %s", failure))
        return ended

    return kill_all_applications


async def leave(server: Any, runtime: GatewayRuntime, hurry: asyncio.Event) -> None:
    """Until all requests are answered; after the drain's time, or once ``hurry`` is set, they are cut."""
    runtime.stopping.set()
    if await _idle(server, runtime.config.drain_s, hurry):
        return
    log.warning("%d requests did not finish in time: they are cut", len(_busy(server)))
    await runtime.cut()
    if await _idle(server, LAST_WORDS_S):
        return
    left = _applications(server)
    for application in left:
        application.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _idle(server: Any, within_s: float, hurry: asyncio.Event | None = None) -> bool:
    """Whether all was answered within this time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while _busy(server):
        if loop.time() >= until or (hurry is not None and hurry.is_set()):
            return False
        await asyncio.sleep(LOOK_S)
    return True


def _busy(server: Any) -> list[Any]:
    """Applications that run, and connections whose clients have not read all of their answers."""
    return [*_applications(server), *reactor.getWriters()]


def _applications(server: Any) -> list[asyncio.Future[Any]]:
    found = [details.get("application_instance") for details in server.connections.values()]
    return [one for one in found if one is not None and not one.done()]
