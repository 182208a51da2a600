"""The I/O thread's ways to Redis, and how it waits while Redis is away."""

from __future__ import annotations

import asyncio
import logging

from channels_redis.pubsub import RedisPubSubChannelLayer
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inference.redis_client import redis_client

# redis-py raises OSError's children, too, when a socket goes.
REDIS_TROUBLE = (RedisError, OSError, asyncio.TimeoutError)

logger = logging.getLogger(__name__)


def open_client(redis_url: str) -> Redis:
    """A client that never repeats a command by itself: a pull repeated would leave jobs behind."""
    return redis_client(
        redis_url,
        socket_timeout=10.0,
        socket_connect_timeout=5.0,
        retry=Retry(NoBackoff(), 0),
    )


def open_layer(redis_url: str) -> RedisPubSubChannelLayer:
    """The Channels layer that the gateways listen on."""
    # It logs a traceback a second while Redis is away; Patience says it once.
    logging.getLogger("channels_redis.pubsub").setLevel(logging.CRITICAL)
    return RedisPubSubChannelLayer(hosts=[redis_url])


class Patience:
    """Waits between tries while Redis is away, longer each time; says so once, and once when it is back."""

    FIRST_S = 0.05
    MOST_S = 2.0

    def __init__(self, what: str) -> None:
        self._what = what
        self._wait_s = 0.0

    def succeeded(self) -> None:
        if self._wait_s:
            logger.warning("%s: Redis is back", self._what)
            self._wait_s = 0.0

    async def wait(self, error: BaseException) -> None:
        if not self._wait_s:
            logger.warning(
                "%s: Redis is away (%s: %s), trying again", self._what, type(error).__name__, error
            )
        self._wait_s = min(self.MOST_S, max(self.FIRST_S, 2 * self._wait_s))
        await asyncio.sleep(self._wait_s)
