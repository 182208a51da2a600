"""``GET /v1/models`` of a registry with 10,000 versions, through the real gateway with a key."""

from __future__ import annotations

import http.client
import statistics
import time

from tests.bench.instant_platform import instant_platform
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

MODELS, VERSIONS = 1_000, 10
ROUNDS, QUICK_ROUNDS = 200, 40


def bench(setting: Setting) -> None:
    """The first answer after a change, and the p50 of those after it."""
    with instant_platform(setting.work, many=(MODELS, VERSIONS)) as platform:
        port = int(platform.target.url.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        times = []
        size = 0
        for _ in range(1 + (QUICK_ROUNDS if setting.quick else ROUNDS)):
            started = time.perf_counter()
            connection.request(
                "GET", "/v1/models", headers={"Authorization": f"Bearer {platform.target.api_key}"}
            )
            answer = connection.getresponse()
            size = len(answer.read())
            times.append((time.perf_counter() - started) * 1000)
            assert answer.status == 200
        connection.close()
        first, rest = times[0], times[1:]
        say(f"  {size} bytes; first {first:.0f} ms")
        note = f"{MODELS} models with {VERSIONS} versions each, {size} bytes; the first after a change {first:.0f} ms"
        emit(Figure(name="models_listing_p50", value=statistics.median(rest), unit="ms", note=note))
