"""Asynchronous Redis clients whose commands are packed by hiredis in C.

redis-py does so in its synchronous client only; in the asynchronous one each argument costs a microsecond of Python,
and a request has about sixty.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.connection import HiredisRespSerializer

_pack = HiredisRespSerializer().pack


class _PackedInC:
    def pack_command(self, *args: Any) -> list[bytes]:
        return _pack(*args)

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join([piece for command in commands for piece in _pack(*command)])]


class _Tcp(_PackedInC, Connection):
    pass


class _Tls(_PackedInC, SSLConnection):
    pass


class _Unix(_PackedInC, UnixDomainSocketConnection):
    pass


_PACKED = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


def redis_client(url: str, **options: Any) -> Redis:
    """A client of the Redis at ``redis://``, ``rediss://`` or ``unix://``; options as ``Redis.from_url`` has them."""
    pool = ConnectionPool.from_url(url, **options)
    pool.connection_class = _PACKED[pool.connection_class]
    return Redis.from_pool(pool)
