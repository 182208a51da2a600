"""Tells other processes that rows changed, after the transaction that changed them is committed."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import transaction

from inference.protocol import (
    CONTROLLER_CHANNEL,
    FENCE_TTL_S,
    GATEWAYS,
    control_channel,
    fence_key,
    node_channel,
)

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 5.0


@functools.cache
def connection() -> redis.Redis:
    """This process's plain Redis client."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=5, socket_connect_timeout=2)


def _publish(channel: str) -> None:
    try:
        connection().publish(channel, b"")
    except redis.RedisError as error:
        # Only the push is lost: whoever listens polls as well.
        log.warning("could not wake %s: %s", channel, error)


def fence(replica: str) -> None:
    """Give a replica up for good: it gets no more jobs, ends itself, and what it still says is ignored."""
    connection().set(fence_key(replica), b"", ex=FENCE_TTL_S)


def wake_controller() -> None:
    """Let the controller look at deployments and replicas now."""
    transaction.on_commit(lambda: _publish(CONTROLLER_CHANNEL))


def wake_node(name: str) -> None:
    """Let a node look at its replicas' rows now."""
    transaction.on_commit(lambda: _publish(node_channel(name)))


def wake_when(stop: threading.Event, channel: str) -> None:
    """Have a loop that listens on this channel look up as soon as it is asked to stop."""

    def wait() -> None:
        stop.wait()
        _publish(channel)

    threading.Thread(target=wait, name="wake", daemon=True).start()


def tell_gateways(message: dict[str, Any]) -> None:
    """Send one message to every gateway process."""
    _tell(message, lambda layer: layer.group_send(GATEWAYS, message))


def tell_replica(replica: str, message: dict[str, Any]) -> None:
    """Send one message to a replica's control channel."""
    _tell(message, lambda layer: layer.send(control_channel(replica), message))


def _tell(message: dict[str, Any], send: Callable[[Any], Awaitable[None]]) -> None:
    # A thread, and so an event loop and a connection, of its own: asgiref would borrow the gateway's own loop when a
    # view of Django calls this, and closing the connection there would close the gateway's ears.
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            pool.submit(asyncio.run, _send(send)).result()
        except (redis.RedisError, OSError) as error:
            log.warning("could not tell %s: %s", message["type"], error)


async def _send(send: Callable[[Any], Awaitable[None]]) -> None:
    layer = get_channel_layer()
    assert layer is not None
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send(layer)
    finally:
        await layer.flush()


def on_configuration_changed(revision: int, **_: Any) -> None:
    """Receiver of registry's `configuration_changed`."""
    tell_gateways({"type": "config.revision", "revision": revision})
