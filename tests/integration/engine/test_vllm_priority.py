"""Real vLLM with a cache for few streams: who is more important takes blocks from who is less, and does not wait."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

from inference.engine.overtaking import age
from inference.engine.puller import AGED_AFTER_S
from inference.protocol import DONE, EngineOptions, ReplicaSpec
from tests.integration.engine.conftest import is_up, vllm_engine
from tests.integration.engine.gateway import TestGateway, poll

pytestmark = pytest.mark.vllm

NAME = "short"
CONTEXT = 512
# SmolLM2 in float32 takes 46,080 bytes a token; a block on the CPU is 128 tokens, and one block is vLLM's own.
KV_BYTES = (4 + 1) * 128 * 46_080
BEGINNING = "Once upon a time, in a small village by the sea, there lived"
STORY = " ".join([BEGINNING] * 8)  # nearly a block
GREEDY = {"temperature": 0.0, "ignore_eos": True}
TOKENS = 100  # with the prompt more than a block


@pytest.fixture(scope="module")
def short_of_memory(
    vllm_redis: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    """An engine whose cache has four blocks for its streams."""
    log = tmp_path_factory.mktemp("short") / "engine.log"
    spec = ReplicaSpec(
        replica=NAME,
        deployment=NAME,
        served_id="smollm2@short",
        model_path=str(smollm2),
        redis_url=vllm_redis,
        options=EngineOptions(
            dtype="float32",
            context_length=CONTEXT,
            max_streams=8,
            kv_cache_bytes=KV_BYTES,
            prefix_caching=False,
        ),
        log_path=str(log),
    )
    with vllm_engine(spec, log) as process:
        yield process


@pytest.fixture
async def engine(vllm_redis: str, short_of_memory: subprocess.Popen[bytes]) -> AsyncIterator[TestGateway]:
    found = TestGateway(vllm_redis, NAME)
    await found.open()

    await is_up(found, NAME, short_of_memory)
    yield found
    await found.close()


def is_over(engine: TestGateway, job_id: str) -> bool:
    events = engine.events.get(job_id)
    return bool(events) and events[-1][2] == DONE


async def fill(engine: TestGateway, priority: str) -> list[str]:
    """Four streams that take all four blocks, and each wants two."""
    jobs = [
        engine.submit(priority=priority, prompts=[STORY], sampling={**GREEDY, "max_tokens": TOKENS})
        for _ in range(4)
    ]
    for job in jobs:
        await engine.spoken(job)
    return jobs


@pytest.mark.parametrize(("newcomer", "overtakes"), [("high", True), ("low", False)])
async def test_a_more_important_one_overtakes_those_that_run(
    engine: TestGateway, newcomer: str, overtakes: bool
) -> None:
    running = await fill(engine, "low")
    last = engine.submit(priority=newcomer, prompts=[BEGINNING], sampling={**GREEDY, "max_tokens": 4})
    await engine.ended(last)
    ended_before = [job for job in running if is_over(engine, job)]
    for job in running:
        await engine.ended(job)

    if overtakes:
        assert ended_before == [], "it had a block before anybody who ran was done: one was preempted"
    else:
        assert ended_before, "it had to wait for one that ran"
    texts = {engine.text(job) for job in running}
    assert len(texts) == 1, "who was preempted has lost and doubled nothing"
    assert all(len(engine.tokens(job)) == TOKENS for job in running)


async def test_a_full_engine_takes_a_more_important_one_out_of_the_queue(engine: TestGateway) -> None:
    """The eight of the batch and one more are in hand: all others of the class wait in Redis."""
    low = [
        engine.submit(priority="low", prompts=[BEGINNING], sampling={**GREEDY, "max_tokens": 60})
        for _ in range(12)
    ]
    for job in low[:4]:
        await engine.spoken(job)
    await poll(lambda: len(engine.queue("low")) == 3, "it is full")
    high = engine.submit(priority="high", prompts=[BEGINNING], sampling={**GREEDY, "max_tokens": 4})
    await engine.spoken(high)
    assert not [job for job in low if is_over(engine, job)], "it had its first token before anybody was done"
    assert len(engine.queue("low")) == 3
    await engine.ended(high)
    for job in low:
        await engine.ended(job)
    assert len({engine.text(job) for job in low}) == 1, "who gave way has lost and doubled nothing"
    assert all(len(engine.tokens(job)) == 60 for job in low)


def waits(name: str, priority: int, arrival: float) -> Request:
    return Request(name, [1], SamplingParams(), None, arrival_time=arrival, priority=priority)


def order(scheduler: Any) -> list[str]:
    return [one.request_id for one in scheduler.waiting]


def test_who_was_overtaken_and_has_waited_long_goes_first_one_at_a_time() -> None:
    scheduler: Any = Batch(running=[waits("overtook", -1, 7.0)])
    for name, priority, arrival in (("low", 1, 5.0), ("normal", 0, 6.0), ("high", -1, 8.0)):
        scheduler.waiting.add_request(waits(name, priority, arrival))
    age(scheduler, 100.0)
    age(scheduler, 100.0 + AGED_AFTER_S - 1)
    assert order(scheduler) == ["high", "normal", "low"]
    age(scheduler, 100.0 + AGED_AFTER_S)
    assert order(scheduler) == ["low", "high", "normal"]
    age(scheduler, 101.0 + AGED_AFTER_S)
    assert order(scheduler) == ["low", "high", "normal"], "the next one is raised when this one runs"
    scheduler.waiting.pop_request()
    age(scheduler, 102.0 + AGED_AFTER_S)
    assert order(scheduler) == ["normal", "high"]


@pytest.mark.parametrize("running", [("as low", 1, 7.0), ("was before", -1, 4.0)])
def test_who_was_not_overtaken_keeps_its_place_however_long_it_waits(running: tuple[str, int, float]) -> None:
    scheduler: Any = Batch(running=[waits(*running)])
    for name, priority, arrival in (("low", 1, 5.0), ("high", -1, 8.0)):
        scheduler.waiting.add_request(waits(name, priority, arrival))
    age(scheduler, 100.0)
    age(scheduler, 200.0)
    assert order(scheduler) == ["high", "low"]


def test_who_has_run_in_between_begins_to_wait_anew() -> None:
    scheduler: Any = Batch(running=[waits("overtook", -1, 7.0)])
    low = waits("low", 1, 5.0)
    scheduler.waiting.add_request(low)
    age(scheduler, 100.0)
    scheduler.waiting.pop_request()
    age(scheduler, 120.0)
    scheduler.waiting.add_request(low)
    age(scheduler, 125.0)
    age(scheduler, 100.0 + AGED_AFTER_S)
    assert low.priority == 1


class Batch:
    """What the ageing looks at of vLLM's scheduler; queue and requests are vLLM's own."""

    policy = SchedulingPolicy.PRIORITY

    def __init__(self, running: list[Request]) -> None:
        self.running = running
        self.waiting: RequestQueue = create_request_queue(SchedulingPolicy.PRIORITY)
