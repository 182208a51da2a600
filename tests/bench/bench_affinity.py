"""TTFT where long beginnings are shared, two replicas of one deployment: with affinity, and without it.

Real engines, which share this machine's cores. One replica's KV cache does not hold all the beginnings; both together
do. The same requests in the same order, after the same warm-up, each time with new engines.
"""

from __future__ import annotations

import random
import sqlite3
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, replace

from tests.bench.load import LoadFailed, Result, Target, generate, run
from tests.bench.platform import MODEL, Platform, whole_platform
from tests.bench.processes import START_DEADLINE_S, ServerFailed
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

GROUPS = 8
ASKED, QUICK_ASKED = 8, 4  # requests a group
WORDS = 1200  # of a beginning, and about as many tokens
CONNECTIONS = 4
TOKENS = 8
LABEL = "affinity"
# 7,281 tokens of SmolLM2-135M in bfloat16: five beginnings and what runs. Eager, so that no builder runs beside it.
OPTIONS = {"kv_cache_bytes": 160 * 2**20, "context_length": 2048, "prefix_caching": True}
SETTINGS = {"MMSERVE_COMPILED_DIR": ""}
VOCABULARY = (
    "river stone light market garden letter window morning captain engine forest silver kitchen winter bridge "
    "question number paper island teacher music harbour planet mirror valley doctor basket thunder pocket candle"
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of the load."""

    ttft_p50_s: float
    ttft_p95_s: float
    cached_share: float  # of the prompts' tokens
    answered: str  # by replica


def bench(setting: Setting) -> None:
    """With affinity first, then without."""
    asked = QUICK_ASKED if setting.quick else ASKED
    ours, theirs = (_measure(setting, asked, on) for on in (True, False))
    note = f"by replica {ours.answered}; without {theirs.answered}"
    for name, unit, value, peer_value, scale in (
        ("affinity_ttft_p50", "ms", ours.ttft_p50_s, theirs.ttft_p50_s, 1e3),
        ("affinity_ttft_p95", "ms", ours.ttft_p95_s, theirs.ttft_p95_s, 1e3),
        ("affinity_cached_prompt_tokens", "%", ours.cached_share, theirs.cached_share, 100.0),
    ):
        emit(
            Figure(
                name=name,
                value=value * scale,
                unit=unit,
                peer="the same without affinity",
                peer_value=peer_value * scale,
                note=note,
            )
        )


def _measure(setting: Setting, asked: int, on: bool) -> Measured:
    with whole_platform(setting.work, **SETTINGS, MMSERVE_AFFINITY=str(on)) as platform:
        target = _two_replicas(platform)
        draw = random.Random(7)
        warm_up = [_request(target, _text(draw)) for _ in range(GROUPS)]
        _ask(target, warm_up)
        beginnings = [_text(draw) for _ in range(GROUPS)]
        order = [number for number in range(GROUPS) for _ in range(asked)]
        draw.shuffle(order)
        prompts = [f"{beginnings[number]} Question {at}: what is meant?" for at, number in enumerate(order)]
        result = _ask(target, [_request(target, prompt) for prompt in prompts])
        measured = _figures(result, _by_replica(platform, len(prompts)))
        platform.rest("POST", f"/v1/models/{target.model}/unload", {})
    say(
        f"  affinity {'on' if on else 'off'}: TTFT p50 {measured.ttft_p50_s * 1e3:.0f} ms, "
        f"p95 {measured.ttft_p95_s * 1e3:.0f} ms, {measured.cached_share:.0%} cached, by replica {measured.answered}"
    )
    return measured


def _text(draw: random.Random) -> str:
    return " ".join(draw.choices(VOCABULARY.split(), k=WORDS))


def _request(target: Target, prompt: str) -> bytes:
    return target.request(prompt, stream=True, max_tokens=TOKENS, temperature=0, ignore_eos=True)


def _ask(target: Target, requests: list[bytes]) -> Result:
    load = generate(target.url, iter(requests), stream=True, connections=CONNECTIONS, total=len(requests))
    return run(load)


def _figures(result: Result, answered: str) -> Measured:
    waited = sorted(answer.first - answer.sent for answer in result.answers)
    prompt_tokens = sum(answer.prompt_tokens for answer in result.answers)
    if not prompt_tokens:
        raise LoadFailed("no answer says how many tokens its prompt has")
    return Measured(
        statistics.median(waited),
        waited[int(len(waited) * 0.95)],
        sum(answer.cached_tokens for answer in result.answers) / prompt_tokens,
        answered,
    )


def _two_replicas(platform: Platform) -> Target:
    """The model's version with a small cache, up twice."""
    known = platform.rest("GET", f"/v1/registry/versions?model__name={MODEL}")["results"]
    if all(version["version"] != LABEL for version in known):
        body = {"version": LABEL, "engine_options": OPTIONS}
        platform.rest("POST", f"/v1/registry/versions/{known[0]['id']}/duplicate", body)
    target = replace(platform.target, model=f"{MODEL}@{LABEL}")
    platform.rest("POST", f"/v1/models/{target.model}/load", {"replicas": 2})
    database = f"file:{platform.data / 'mmserve.sqlite3'}?mode=ro"
    ready = "SELECT count(*) FROM inference_replica WHERE state = 'ready'"
    give_up = time.monotonic() + START_DEADLINE_S
    while True:
        with closing(sqlite3.connect(database, uri=True)) as connection:
            if connection.execute(ready).fetchone()[0] == 2:
                return target
        if time.monotonic() > give_up:
            raise ServerFailed("two replicas were not ready in time")
        time.sleep(0.1)


def _by_replica(platform: Platform, count: int) -> str:
    """How many of the last requests each replica has answered, and how many had the one that they preferred."""
    time.sleep(1.0)  # they are written a moment after the answer
    kept = platform.rest("GET", f"/v1/routing/decisions?limit={count}")["data"]
    found: dict[str, int] = {}
    for decision in kept:
        name = decision["outcome"]["replica"]
        found[name] = found.get(name, 0) + 1
    answered = " and ".join(str(number) for number in sorted(found.values(), reverse=True))
    wishes = [decision["outcome"] for decision in kept if decision["outcome"]["preferred_replica"]]
    if not wishes:
        return answered
    granted = sum(wish["preferred_replica"] == wish["replica"] for wish in wishes)
    return f"{answered}, {granted} of {len(wishes)} wishes granted"
