"""This process's plain Redis client, for what routing reads there."""

from __future__ import annotations

import functools

import redis
from django.conf import settings


@functools.cache
def connection() -> redis.Redis:
    """One client, with a pool of its own."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=5, socket_connect_timeout=2)
