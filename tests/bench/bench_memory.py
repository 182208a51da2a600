"""Memory of a gateway process over 100,000 requests: after the warm-up it must not grow."""

from __future__ import annotations

import itertools

import psutil

from tests.bench.instant_platform import instant_platform
from tests.bench.load import generate, run
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

REQUESTS, WARM_UP = 100_000, 20_000
ROUND = 5_000
CONNECTIONS = 16
TOKENS = 4
QUICK_SHARE = 10


def bench(setting: Setting) -> None:
    """Resident memory after every round; every fourth round streams."""
    share = QUICK_SHARE if setting.quick else 1
    requests, warm_up, a_round = REQUESTS // share, WARM_UP // share, ROUND // share
    with instant_platform(setting.work) as platform:
        target, gateway = platform.target, psutil.Process(platform.gateway_pid)
        resident: dict[int, float] = {}
        for number in range(requests // a_round):
            stream = number % 4 == 3
            bodies = itertools.repeat(target.request("Say something.", stream=stream, max_tokens=TOKENS))
            run(generate(target.url, bodies, stream=stream, connections=CONNECTIONS, total=a_round))
            resident[(number + 1) * a_round] = gateway.memory_info().rss / 2**20
            say(f"  {(number + 1) * a_round} requests: {resident[(number + 1) * a_round]:.1f} MiB")
    note = f"{resident[warm_up]:.1f} MiB after {warm_up} requests, {resident[requests]:.1f} after {requests}"
    emit(
        Figure(
            name="gateway_memory_growth", value=resident[requests] - resident[warm_up], unit="MiB", note=note
        )
    )
