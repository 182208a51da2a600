"""What a real daphne serves in these tests: the hot path over ``REDIS_URL``, with the fakes."""

from __future__ import annotations

import os

from channels.routing import ProtocolTypeRouter

from inference.gateway.daphne_flow import install
from tests.integration.gateway.conftest import Gateway

gateway = Gateway(
    os.environ["REDIS_URL"], max_body_bytes=1 << 20, drain_s=float(os.environ.get("MMSERVE_DRAIN_S", 30))
)
install(gateway.runtime)
application = ProtocolTypeRouter({"http": gateway.client.app, "websocket": gateway.socket_app})
