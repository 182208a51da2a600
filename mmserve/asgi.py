"""The ASGI application: the hot path first, then Django's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mmserve.settings")

from django.core.asgi import get_asgi_application  # noqa: E402

django_application = get_asgi_application()

from channels.db import database_sync_to_async  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter  # noqa: E402
from django.conf import settings  # noqa: E402

from inference.gateway.config import GatewayConfig  # noqa: E402
from inference.gateway.http import HotPath  # noqa: E402
from inference.gateway.runtime import GatewayRuntime  # noqa: E402
from inference.gateway.websocket import SocketApp  # noqa: E402
from inference.snapshot import routing_table  # noqa: E402
from inference.tokenizer_files import tokenizer_file  # noqa: E402
from mmserve.keys import CachedAuthenticator  # noqa: E402
from registry import revision  # noqa: E402
from routing.spending import spent_of  # noqa: E402

runtime = GatewayRuntime(
    GatewayConfig(
        redis_url=settings.REDIS_URL,
        max_body_bytes=settings.MAX_BODY_BYTES,
        drain_s=settings.DRAIN_S,
        decisions_per_s=settings.DECISIONS_PER_S,
        affinity=settings.AFFINITY,
        affinity_factor=settings.AFFINITY_FACTOR,
        affinity_slack=settings.AFFINITY_SLACK,
        affinity_wait_s=settings.AFFINITY_WAIT_S,
        affinity_blocks=settings.AFFINITY_BLOCKS,
        tokenizer_bytes=settings.TOKENIZER_BYTES,
    ),
    channel_layer=get_channel_layer(),
    authenticator=CachedAuthenticator(),
    table_source=database_sync_to_async(routing_table),
    revision_source=database_sync_to_async(revision.current),
    spend_source=database_sync_to_async(spent_of),
    tokenizer_source=database_sync_to_async(tokenizer_file),
)

METRICS = "/metrics"


def started_runtime() -> GatewayRuntime:
    """The runtime; under a server without daphne's reactor the first request starts it."""
    runtime.start()
    return runtime


hot_path = HotPath(started_runtime)


async def http(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """Hot paths never enter Django's request handler; while the gateway stops, only /metrics does."""
    path = scope["path"]
    hot = hot_path.owns(path) or (runtime.stopping.is_set() and path != METRICS)
    await (hot_path if hot else django_application)(scope, receive, send)


if "daphne.server" in sys.modules:
    # Imported here only: it brings Twisted's reactor, which no other server has a use for.
    from inference.gateway.daphne_flow import install

    install(runtime)

application = ProtocolTypeRouter({"http": http, "websocket": SocketApp(started_runtime)})
