"""Start of an engine, from the request to load to the first token, against the start of ``vllm serve``."""

from __future__ import annotations

import shutil
import statistics
import time

from tests.bench.bare_vllm import SHIPPED, TUNED, bare_vllm
from tests.bench.completion import first_token_at
from tests.bench.platform import Platform, whole_platform
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

STARTS, QUICK_STARTS = 3, 1


def _our_start_s(platform: Platform) -> float:
    """One load through the REST API."""
    started = time.perf_counter()
    took = platform.load() - started
    say(f"  loaded in {took:.2f} s")
    return took


def bench(setting: Setting) -> None:
    """Medians; the page cache is warm for both, since the platform's import has just written the files."""
    starts = QUICK_STARTS if setting.quick else STARTS
    later = []
    with whole_platform(setting.work) as platform:
        platform.wait_warm()
        shutil.rmtree(platform.data / "compiled", ignore_errors=True)
        first = _our_start_s(platform)
        platform.wait_compiled()
        platform.unload()
        for _ in range(starts):
            later.append(_our_start_s(platform))
            platform.wait_compiled()
            platform.unload()
    for peer, tuned in ((SHIPPED, False), (TUNED, True)):
        theirs = []
        for _ in range(starts):
            started = time.perf_counter()
            with bare_vllm(platform.model_path, setting.work, tuned=tuned) as (bare, process):
                theirs.append(first_token_at(bare, process) - started)
            say(f"  {peer}: started in {theirs[-1]:.2f} s")
        peer_value = statistics.median(theirs)
        emit(
            Figure(
                name="engine_start",
                value=statistics.median(later),
                unit="s",
                peer=peer,
                peer_value=peer_value,
                note="a later load: compiled from its first token",
            )
        )
        emit(
            Figure(
                name="engine_start_first",
                value=first,
                unit="s",
                peer=peer,
                peer_value=peer_value,
                note="the first load on a machine: eager, compiled in the background",
            )
        )
