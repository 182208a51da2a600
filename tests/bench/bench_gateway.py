"""What the gateway costs, with an engine that answers at once, against two proxies of a backend that does.

Every request of ours has its key, route, admission, RQ job and reply channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import proxies
from tests.bench.instant_platform import instant_platform
from tests.bench.load import Result, Target, generate, run
from tests.bench.peers import LITELLM, VLLM_ROUTER, PeerMissing, distribution
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

CONNECTIONS = 16
STREAM_TOKENS = 64
WARM_UP_S = 2.0
DURATION_S, QUICK_S = 10.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One server's figures."""

    answers_per_s: float
    long_answers_per_s: float
    chunks_per_s: float
    answer_p50_s: float
    stream_p50_s: float


def measure(target: Target, duration_s: float) -> Measured:
    """Five short runs on one server, each after a warm-up."""

    def load(stream: bool, connections: int, tokens: int) -> Result:
        requests = itertools.repeat(target.request("Say something.", stream=stream, max_tokens=tokens))
        for seconds in (WARM_UP_S, duration_s):
            result = run(
                generate(target.url, requests, stream=stream, connections=connections, duration_s=seconds)
            )
        return result

    found = Measured(
        answers_per_s=load(False, CONNECTIONS, 1).answers_per_s,
        long_answers_per_s=load(False, CONNECTIONS, STREAM_TOKENS).answers_per_s,
        chunks_per_s=load(True, CONNECTIONS, STREAM_TOKENS).chunks_per_s,
        answer_p50_s=load(False, 1, 1).latency_p50_s,
        stream_p50_s=load(True, 1, STREAM_TOKENS).latency_p50_s,
    )
    say(f"  {found}")
    return found


@contextmanager
def _ours(work: Path) -> Iterator[Target]:
    with instant_platform(work) as platform:
        yield platform.target


def bench(setting: Setting) -> None:
    """Ours first, then each peer that can be had, one after the other."""
    duration_s = QUICK_S if setting.quick else DURATION_S

    def measured(server: AbstractContextManager[Target]) -> Measured:
        with server as target:
            return measure(target, duration_s)

    ours = measured(_ours(setting.work))
    with proxies.backend(setting.work) as behind:
        bare = measure(behind, duration_s)
        for requirement, proxy in ((LITELLM, proxies.litellm), (VLLM_ROUTER, proxies.vllm_router)):
            peer = distribution(requirement)
            try:
                theirs = measured(proxy(behind, setting.work))
            except PeerMissing as problem:
                _report(ours, peer, None, bare, str(problem))
            else:
                _report(ours, peer, theirs, bare, "")


def _report(ours: Measured, peer: str, theirs: Measured | None, bare: Measured, note: str) -> None:
    """The lines against one peer.

    A proxy adds its latency to the backend's, which is taken off it. Of ours nothing is taken off: the queue
    and the engine worker are in it.
    """

    def line(name: str, value: float, unit: str, peer_value: float | None) -> None:
        emit(Figure(name=name, value=value, unit=unit, peer=peer, peer_value=peer_value, note=note))

    line("gateway_answers", ours.answers_per_s, "answers/s", theirs.answers_per_s if theirs else None)
    line(
        "gateway_answers_64_tokens",
        ours.long_answers_per_s,
        "answers/s",
        theirs.long_answers_per_s if theirs else None,
    )
    line("gateway_stream_chunks", ours.chunks_per_s, "chunks/s", theirs.chunks_per_s if theirs else None)
    line(
        "gateway_added_latency_p50",
        ours.answer_p50_s * 1e3,
        "ms",
        (theirs.answer_p50_s - bare.answer_p50_s) * 1e3 if theirs else None,
    )
    line(
        "gateway_added_latency_p50_64_token_stream",
        ours.stream_p50_s * 1e3,
        "ms",
        (theirs.stream_p50_s - bare.stream_p50_s) * 1e3 if theirs else None,
    )
