"""Streamed tokens/s and time to the first token through the whole platform, against bare ``vllm serve``."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from tests.bench.bare_vllm import SHIPPED, TUNED, bare_vllm
from tests.bench.completion import first_token_at
from tests.bench.load import LoadFailed, Target, generate, run
from tests.bench.platform import whole_platform
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

STREAMS = (1, 8, 32)
TOKENS = 64
ROUNDS, QUICK_ROUNDS = 5, 2


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the rounds."""

    tokens_per_s: float
    ttft_p50_s: float


def measure(target: Target, streams: int, rounds: int) -> Measured:
    """Bursts of ``streams`` different prompts at once, the first burst as warm-up."""
    results = []
    for number in range(rounds + 1):
        requests = [
            target.request(
                f"Story {number}-{streams}-{index}: tell me about {index + 2} foxes and a river.",
                stream=True,
                max_tokens=TOKENS,
                temperature=0,
                ignore_eos=True,
            )
            for index in range(streams)
        ]
        result = run(generate(target.url, iter(requests), stream=True, connections=streams, total=streams))
        if any(answer.tokens != TOKENS for answer in result.answers):
            raise LoadFailed(f"{target.url} made other than {TOKENS} tokens")
        results.append(result)
    measured = Measured(
        statistics.median(result.tokens_per_s for result in results[1:]),
        statistics.median(result.ttft_p50_s for result in results[1:]),
    )
    say(f"  {streams} streams: {measured.tokens_per_s:.0f} tok/s, TTFT {measured.ttft_p50_s * 1e3:.0f} ms")
    return measured


def bench(setting: Setting) -> None:
    """One server after the other, the same load on each."""
    rounds = QUICK_ROUNDS if setting.quick else ROUNDS
    with whole_platform(setting.work) as platform:
        loaded = platform.load()
        # The steady state: until here it serves eagerly.
        platform.wait_compiled()
        took_over_s = time.perf_counter() - loaded
        say(f"  compiled {took_over_s:.0f} s after its load, which was the first")
        ours = [measure(platform.target, streams, rounds) for streams in STREAMS]
        platform.unload()
    emit(Figure(name="stream_compiled_after_first_load", value=took_over_s, unit="s"))
    for peer, tuned in ((SHIPPED, False), (TUNED, True)):
        say(f"  {peer}")
        with bare_vllm(platform.model_path, setting.work, tuned=tuned) as (bare, process):
            first_token_at(bare, process)
            theirs = [measure(bare, streams, rounds) for streams in STREAMS]
        for streams, our, their in zip(STREAMS, ours, theirs, strict=True):
            _emit("tokens", streams, peer, "tokens/s", our.tokens_per_s, their.tokens_per_s)
            _emit("ttft_p50", streams, peer, "ms", our.ttft_p50_s * 1e3, their.ttft_p50_s * 1e3)


def _emit(what: str, streams: int, peer: str, unit: str, ours: float, theirs: float) -> None:
    emit(Figure(name=f"stream_{what}_{streams}", value=ours, unit=unit, peer=peer, peer_value=theirs))
