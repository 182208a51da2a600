"""A burst of 2,000 requests on a queue bound of 500: each is answered or refused in time, the refused ones at once.

The engine takes its time and no CPU, so that the queue really fills. Times are the client's, on the same cores.
"""

from __future__ import annotations

import statistics

from tests.bench.burst import Shot, fire
from tests.bench.instant_platform import instant_platform
from tests.bench.load import LoadFailed
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

REQUESTS, QUICK_REQUESTS = 2000, 800
QUEUE_BOUND = 500
DEADLINE_MS = 20_000
# 64 streams of 8 tokens, a step each 50 ms: about 160 answers a second.
STEP_S, TOKENS = 0.05, 8
ROUNDS, QUICK_ROUNDS = 3, 1


def bench(setting: Setting) -> None:
    """Within a second, and then all at once."""
    requests = QUICK_REQUESTS if setting.quick else REQUESTS
    with instant_platform(setting.work, queue_bound=QUEUE_BOUND, step_s=STEP_S) as platform:
        target = platform.target
        request = target.request("Say something.", stream=False, max_tokens=TOKENS, deadline_ms=DEADLINE_MS)
        fire(target.url, request, 64, within_s=0, deadline_s=60)
        for within_s, name in ((1.0, "burst_refused_p99_within_1s"), (0.0, "burst_refused_p99_at_once")):
            rounds = []
            for _ in range(QUICK_ROUNDS if setting.quick else ROUNDS):
                shots = fire(target.url, request, requests, within_s=within_s, deadline_s=60)
                rounds.append(_judged(shots))
                say(f"  {name}: " + "; ".join(rounds[-1][1:]))
            middle = sorted(rounds)[len(rounds) // 2]
            emit(Figure(name=name, value=middle[0] * 1e3, unit="ms", note="; ".join(middle[1:])))


def _judged(shots: list[Shot]) -> tuple[float, str, str, str]:
    """The refused ones' p99, and what else is to be said; LoadFailed if not all were answered or refused in time."""
    answered = [shot for shot in shots if shot.status == 200]
    refused = [shot for shot in shots if shot.status == 429]
    strange = [shot for shot in shots if shot.status not in (200, 429)]
    if strange:
        raise LoadFailed(f"{len(strange)} strange answers; the first: {strange[0]}")
    late = [shot for shot in answered if shot.took_s * 1e3 > DEADLINE_MS]
    if late or not refused or any(shot.retry_after_s is None for shot in refused):
        raise LoadFailed(f"{len(late)} answers after their deadline, {len(refused)} refused")
    times = sorted(shot.took_s for shot in refused)
    return (
        times[int(len(times) * 0.99)],
        f"{len(answered)} answered, {len(refused)} refused of {len(shots)}",
        f"refused p50 {statistics.median(times) * 1e3:.1f} ms, p99 {times[int(len(times) * 0.99)] * 1e3:.1f} ms",
        f"slowest answer {max(shot.took_s for shot in answered):.2f} s",
    )
