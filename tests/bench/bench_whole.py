"""What routing, experiments, budgets and decisions cost together: answers/s with all of it on, against none of it.

Both are the same platform with an engine that answers at once. On: the request names a route, a running experiment
assigns it, its version has prices, three budgets pay for it, and decisions are kept. Off: it names the model. The two
take turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

from tests.bench.instant_platform import InstantPlatform, instant_platform
from tests.bench.load import generate, run
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

CONNECTIONS = 16
WARM_UP_S = 2.0
TURN_S, QUICK_S = 6.0, 2.0
TURNS, QUICK_TURNS = 5, 2


def bench(setting: Setting) -> None:
    """Both platforms up at once, idle while the other is measured."""
    seconds = QUICK_S if setting.quick else TURN_S
    with instant_platform(setting.work, whole=True) as on, instant_platform(setting.work, whole=False) as off:
        for platform in (on, off):
            _answers_per_s(platform, WARM_UP_S)
        pairs = []
        for turn in range(QUICK_TURNS if setting.quick else TURNS):
            order = (on, off) if turn % 2 else (off, on)
            found = {id(platform): _answers_per_s(platform, seconds) for platform in order}
            pairs.append((found[id(on)], found[id(off)]))
            say(f"  on {pairs[-1][0]:.0f}, off {pairs[-1][1]:.0f} answers/s")
    # The median of the turns' own ratios: a slow turn slows both.
    with_it = statistics.median(pair[0] for pair in pairs)
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    emit(
        Figure(
            name="whole_answers",
            value=with_it,
            unit="answers/s",
            peer="none of it",
            peer_value=with_it / ratio,
            note=f"median of the ratios of {len(pairs)} turns; {on.note}",
        )
    )


def _answers_per_s(platform: InstantPlatform, seconds: float) -> float:
    target = replace(platform.target, model=platform.asks_for)
    requests = itertools.repeat(target.request("Say something.", stream=False, max_tokens=1))
    return run(
        generate(target.url, requests, stream=False, connections=CONNECTIONS, duration_s=seconds)
    ).answers_per_s
