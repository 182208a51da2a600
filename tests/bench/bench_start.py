"""Start of an engine, from the request to load to the first token, against the start of ``vllm serve``."""

from __future__ import annotations

import statistics
import time

from tests.bench.bare_vllm import SHIPPED, TUNED, bare_vllm
from tests.bench.completion import first_token_at
from tests.bench.platform import Platform, whole_platform
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

STARTS, QUICK_STARTS = 3, 1


def _our_start_s(platform: Platform) -> float:
    """One load through the REST API, then the model is unloaded again."""
    started = time.perf_counter()
    took = platform.load() - started
    say(f"  loaded in {took:.2f} s")
    platform.unload()
    return took


def bench(setting: Setting) -> None:
    """Medians; the page cache is warm for both, since the platform's import has just written the files."""
    starts = QUICK_STARTS if setting.quick else STARTS
    with whole_platform(setting.work) as platform:
        # The first load waits for the node's template, which is the node's start and not the engine's.
        _our_start_s(platform)
        ours = statistics.median(_our_start_s(platform) for _ in range(starts))
    for peer, tuned in ((SHIPPED, False), (TUNED, True)):
        theirs = []
        for _ in range(starts):
            started = time.perf_counter()
            with bare_vllm(platform.model_path, setting.work, tuned=tuned) as (bare, process):
                theirs.append(first_token_at(bare, process) - started)
            say(f"  {peer}: started in {theirs[-1]:.2f} s")
        peer_value = statistics.median(theirs)
        emit(Figure(name="engine_start", value=ours, unit="s", peer=peer, peer_value=peer_value))
