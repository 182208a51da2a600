"""A gateway runtime over a real Redis and Channels layer, with fakes for keys, table and engine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from channels_redis.pubsub import RedisPubSubChannelLayer

from inference.gateway.auth import KeyGrant
from inference.gateway.config import GatewayConfig
from inference.gateway.http import HotPath
from inference.gateway.runtime import GatewayRuntime
from inference.gateway.websocket import SocketApp
from mmserve.errors import AuthenticationFailed
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.client import Client
from tests.integration.gateway.waiting import until

KEY = "mm-good"


class FakeKeys:
    """Grants by raw key."""

    def __init__(self) -> None:
        self.grants = {
            KEY: KeyGrant(id="k1", name="tests", scopes=frozenset({"infer"})),
            "mm-manage": KeyGrant(id="k2", name="manager", scopes=frozenset({"manage"})),
            "mm-expired": KeyGrant(id="k3", name="old", scopes=frozenset({"infer"}), expires_at=1.0),
        }
        self.refreshed: list[int] = []

    async def authenticate(self, raw_key: str) -> KeyGrant:
        try:
            return self.grants[raw_key]
        except KeyError:
            raise AuthenticationFailed("This is not an access key of this server.") from None

    def remembered(self, raw_key: str) -> KeyGrant | None:
        return self.grants.get(raw_key)

    async def refresh(self, new_revision: int) -> None:
        self.refreshed.append(new_revision)


def table(revision: int = 1, **limits: Any) -> RoutingTable:
    """One loaded model ``acme/echo``, one without a chat template, and one that nothing serves."""
    bounds = Limits(**{"queue_bound": 8, "default_deadline_s": 30.0, **limits})
    return RoutingTable.build(
        revision=revision,
        models=[
            ModelEntry(id="acme/echo", default="acme/echo@1"),
            ModelEntry(id="cold", default="cold@1"),
            ModelEntry(id="base", default="base@1"),
        ],
        versions=[
            VersionEntry(served_id="acme/echo@1", model="acme/echo"),
            VersionEntry(served_id="cold@1", model="cold"),
            VersionEntry(served_id="base@1", model="base"),
        ],
        aliases={"acme/echo@stable": "acme/echo@1"},
        deployments=[
            DeploymentEntry(id="echo", served_id="acme/echo@1", limits=bounds),
            DeploymentEntry(id="base", served_id="base@1", limits=bounds, has_chat_template=False),
            DeploymentEntry(id="cold", served_id="cold@1", limits=bounds, wanted_replicas=0),
        ],
    )


class Gateway:
    """A running runtime with what tests turn."""

    def __init__(self, redis_url: str, **config: Any) -> None:
        self.redis_url = redis_url
        self.keys = FakeKeys()
        self.table = table()
        self.database_away = False
        self.layer = RedisPubSubChannelLayer(hosts=[redis_url])
        self.runtime = GatewayRuntime(
            GatewayConfig(redis_url=redis_url, **config),
            channel_layer=self.layer,
            authenticator=self.keys,
            table_source=self._table,
            revision_source=self._revision,
        )
        self.socket_app = SocketApp(lambda: self.runtime)
        self.client = Client(HotPath(lambda: self.runtime), KEY)

    table_with = staticmethod(table)

    async def _table(self) -> RoutingTable:
        return self.table

    async def _revision(self) -> int:
        if self.database_away:
            raise OSError("connection refused")
        return self.table.revision


@contextlib.asynccontextmanager
async def running_gateway(redis_url: str, **config: Any) -> AsyncIterator[Gateway]:
    gateway = Gateway(redis_url, **config)
    gateway.runtime.start()
    try:
        await gateway.runtime.ready()
        yield gateway
    finally:
        await gateway.runtime.stop()
        await gateway.layer.flush()


Opener = Callable[..., contextlib.AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def open_gateway(redis_url: str) -> Opener:
    """``async with open_gateway(max_body_bytes=…) as gateway``."""
    return functools.partial(running_gateway, redis_url)


@pytest.fixture
def open_gateway_at() -> Opener:
    """The same with a Redis of the test's own: ``open_gateway_at(url)``."""
    return running_gateway


async def heard(gateway: Gateway) -> None:
    """Until the gateway has heard of a ready replica."""
    await until(lambda: any(load.ready for load in gateway.runtime.live.loads.values()))
