"""Real vLLM with a cache for two streams: who is more important takes blocks from who is less."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from inference.protocol import DONE, EngineOptions, ReplicaSpec
from tests.integration.engine.conftest import is_up, vllm_engine
from tests.integration.engine.gateway import TestGateway

pytestmark = pytest.mark.vllm

NAME = "short"
CONTEXT = 512
# SmolLM2 in float32 takes 46,080 bytes a token; a block on the CPU is 128 tokens, and one block is vLLM's own.
KV_BYTES = (4 + 1) * 128 * 46_080
BEGINNING = "Once upon a time, in a small village by the sea, there lived"
STORY = " ".join([BEGINNING] * 8)  # nearly a block
GREEDY = {"temperature": 0.0, "ignore_eos": True}
TOKENS = 24  # with the prompt more than a block


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
