"""TTFT where long beginnings are shared, two replicas of one deployment: by affinity, by lot, and by who pulls first.

Real engines, which share this machine's cores. One replica's KV cache does not hold all the beginnings; both together
do. Three gateways on one platform ask the same two engines in turns, each turn with beginnings that nobody has seen,
and in the same order of questions; who goes first is drawn.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.load import Answer, LoadFailed, Target, generate, run
from tests.bench.platform import MODEL, Platform, environment, whole_platform
from tests.bench.processes import (
    START_DEADLINE_S,
    ServerFailed,
    free_port,
    running,
    status_of,
    wait_until,
)
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

ROUNDS, QUICK_ROUNDS = 2, 1
GROUPS = 6
ASKED = 8  # requests a group
WORDS = 380  # of a beginning, and about as many tokens
CONNECTIONS = 4
TOKENS = 4
LABEL = "affinity"
# 17 blocks of 128 tokens of SmolLM2-135M in bfloat16: four beginnings of three, and what runs. Eager: no builder runs.
OPTIONS = {"kv_cache_bytes": 48 * 2**20, "context_length": 1024, "prefix_caching": True}
SETTINGS = {"MMSERVE_COMPILED_DIR": ""}
AFFINITY, BY_LOT, PULL = "affinity", "by lot", "whoever pulls first"
RESAMPLED = 2000
VOCABULARY = (
    "river stone light market garden letter window morning captain engine forest silver kitchen winter bridge "
    "question number paper island teacher music harbour planet mirror valley doctor basket thunder pocket candle"
)


@dataclass(slots=True)
class Measured:
    """All rounds of one way to choose. ``again`` are the answers to beginnings that were asked about before."""

    rounds: list[list[Answer]] = field(default_factory=list)
    again: list[list[Answer]] = field(default_factory=list)
    by_replica: list[str] = field(default_factory=list)

    @property
    def cached_share(self) -> float:
        """Of the prompts' tokens, from the cache."""
        answers = [answer for one in self.rounds for answer in one]
        prompt_tokens = sum(answer.prompt_tokens for answer in answers)
        if not prompt_tokens:
            raise LoadFailed("no answer says how many tokens its prompt has")
        return sum(answer.cached_tokens for answer in answers) / prompt_tokens


def bench(setting: Setting) -> None:
    """Against a draw by lot, and against the pull as it is."""
    found = _measure(setting, QUICK_ROUNDS if setting.quick else ROUNDS)
    ours = found[AFFINITY]
    for name, peer in (("lot", BY_LOT), ("pull", PULL)):
        theirs = found[peer]
        for of, share, ours_by, theirs_by in (
            ("p50", 0.5, ours.again, theirs.again),
            ("p95", 0.95, ours.again, theirs.again),
            ("p95_with_first_meetings", 0.95, ours.rounds, theirs.rounds),
        ):
            low, high = ratio_interval(ours_by, theirs_by, share)
            emit(
                Figure(
                    name=f"affinity_ttft_{of}_to_{name}",
                    value=ttft_s(ours_by, share) * 1e3,
                    unit="ms",
                    peer=peer,
                    peer_value=ttft_s(theirs_by, share) * 1e3,
                    note=f"of {sum(map(len, ours_by))} answers each; the ratio is from {low:.2f} to {high:.2f} "
                    "in 95% of the resampled runs",
                )
            )
        emit(
            Figure(
                name=f"affinity_cached_prompt_tokens_to_{name}",
                value=ours.cached_share * 100.0,
                unit="%",
                peer=peer,
                peer_value=theirs.cached_share * 100.0,
                note=f"by replica {', '.join(ours.by_replica)}; {peer}: {', '.join(theirs.by_replica)}",
            )
        )


def _measure(setting: Setting, rounds: int) -> dict[str, Measured]:
    found = {AFFINITY: Measured(), BY_LOT: Measured(), PULL: Measured()}
    draw = random.Random(7)
    with whole_platform(setting.work, **SETTINGS) as platform, ExitStack() as stack:
        target = _two_replicas(platform)
        targets = {AFFINITY: target}
        for name, application, affinity in (
            (BY_LOT, "tests.bench.by_lot:application", "true"),
            (PULL, "mmserve.asgi:application", "false"),
        ):
            env = SETTINGS | {"MMSERVE_AFFINITY": affinity}
            targets[name] = stack.enter_context(_gateway(setting.work, platform, application, env, target))
        for one in targets.values():
            _ask(one, [_request(one, _text(draw)) for _ in range(2)])
        for number in range(rounds):
            order = [group for group in range(GROUPS) for _ in range(ASKED)]
            draw.shuffle(order)
            first = {order.index(group) for group in range(GROUPS)}
            for name in random.sample([*targets], len(targets)):
                beginnings = [_text(draw) for _ in range(GROUPS)]
                prompts = [
                    f"{beginnings[group]} Question {at}: what is meant?" for at, group in enumerate(order)
                ]
                answers = _ask(targets[name], [_request(targets[name], prompt) for prompt in prompts])
                again = [answer for answer in answers if answer.number not in first]
                found[name].rounds.append(answers)
                found[name].again.append(again)
                found[name].by_replica.append(_by_replica(platform, len(prompts)))
                say(
                    f"  round {number + 1}, {name}: {in_words(answers)}, with a known beginning {in_words(again)}, "
                    f"by replica {found[name].by_replica[-1]}"
                )
        platform.rest("POST", f"/v1/models/{target.model}/unload", {})
    return found


@contextmanager
def _gateway(
    work: Path, platform: Platform, application: str, settings: dict[str, str], target: Target
) -> Iterator[Target]:
    """One more gateway process of this platform, on a port of its own."""
    port = free_port()
    log = work / f"gateway-{port}.log"
    daphne = shutil.which("daphne", path=str(Path(sys.executable).parent)) or "daphne"
    command = [daphne, "-b", "127.0.0.1", "-p", str(port), "--no-server-name", "-v", "0", application]
    with running(command, log, environment(platform.data, port) | settings) as process:
        wait_until(lambda: status_of(port, "/readyz") == 200, process, log)
        yield replace(target, url=f"http://127.0.0.1:{port}")


def in_words(answers: Sequence[Answer]) -> str:
    """One turn's figures."""
    times = [waited(answer) for answer in answers]
    cached = sum(one.cached_tokens for one in answers) / sum(one.prompt_tokens for one in answers)
    return (
        f"TTFT p50 {quantile(times, 0.5) * 1e3:.0f} ms, p95 {quantile(times, 0.95) * 1e3:.0f} ms, "
        f"{cached:.0%} cached"
    )


def waited(answer: Answer) -> float:
    """The time to its first token, in seconds."""
    return answer.first - answer.sent


def ttft_s(rounds: Sequence[Sequence[Answer]], share: float) -> float:
    """The quantile over all rounds."""
    return quantile([waited(answer) for one in rounds for answer in one], share)


def quantile(values: Sequence[float], share: float) -> float:
    """By nearest rank."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def ratio_interval(
    ours: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[Answer]], share: float
) -> tuple[float, float]:
    """Where 95% of the ratios lie that answers drawn anew, within their rounds, would have given (bootstrap)."""
    draw = random.Random(11)

    def again(rounds: Sequence[Sequence[Answer]]) -> float:
        return ttft_s([draw.choices(answers, k=len(answers)) for answers in rounds], share)

    ratios = sorted(again(ours) / again(theirs) for _ in range(RESAMPLED))
    return ratios[int(RESAMPLED * 0.025)], ratios[int(RESAMPLED * 0.975)]


def _text(draw: random.Random) -> str:
    return " ".join(draw.choices(VOCABULARY.split(), k=WORDS))


def _request(target: Target, prompt: str) -> bytes:
    return target.request(prompt, stream=True, max_tokens=TOKENS, temperature=0, ignore_eos=True)


def _ask(target: Target, requests: list[bytes]) -> list[Answer]:
    load = generate(target.url, iter(requests), stream=True, connections=CONNECTIONS, total=len(requests))
    return run(load).answers


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
    return f"{answered} ({granted} of {len(wishes)} wishes granted)"
