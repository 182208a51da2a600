"""What an operator may ask of an engine beyond its defaults, with the real one on this CPU."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from inference.node.devices import abilities_of, local_devices
from inference.protocol import DONE, ERROR, EngineOptions, OptionsCheck, ReplicaSpec
from tests.integration.engine.conftest import CONTEXT
from tests.integration.engine.gateway import TestGateway, poll
from tests.integration.engine.test_node import Node

pytestmark = pytest.mark.vllm

REPEATED = "One two three four five. One two three four five. One two three"
# What this very processor says that it can do: all of it is tried.
[CPU] = local_devices()
HERE = abilities_of(CPU, [CPU])["quantization"]
PLAIN = EngineOptions(dtype="float32", context_length=CONTEXT, max_streams=8, kv_cache_bytes=128 * 2**20)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path / "node.log")
    yield found
    found.kill()


@pytest.fixture
async def serve(
    node: Node, redis_url: str, smollm2: Path, tmp_path: Path
) -> AsyncIterator[Callable[[str, EngineOptions], Awaitable[TestGateway]]]:
    """Serve SmolLM2 with these options; a gateway to it."""
    opened: list[TestGateway] = []

    async def begin(name: str, options: EngineOptions) -> TestGateway:
        gateway = TestGateway(redis_url, name)
        await gateway.open()
        opened.append(gateway)
        spec = ReplicaSpec(
            replica=name,
            deployment=name,
            served_id=f"smollm2@{name}",
            model_path=str(smollm2),
            redis_url=redis_url,
            options=options,
            log_path=str(tmp_path / f"{name}.log"),
        )
        node.command(start=msgspec.to_builtins(spec))
        await node.hears("started", name)
        await poll(
            lambda: (beat := gateway.beat(name)) and beat.state == "ready", f"{name} is ready", wait_s=150
        )
        return gateway

    yield begin
    for gateway in opened:
        await gateway.close()


async def greedy(gateway: TestGateway, prompt: str, tokens: int = 48) -> str:
    job = gateway.submit(
        prompts=[prompt], sampling={"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True}
    )
    assert (await gateway.ended(job))[-1][2] == DONE
    return gateway.text(job)


async def test_speculation_makes_the_same_greedy_text(
    serve: Callable[[str, EngineOptions], Awaitable[TestGateway]],
) -> None:
    plain = await greedy(await serve("plain", PLAIN), REPEATED)
    guessing = msgspec.structs.replace(PLAIN, speculation="ngram", speculative_tokens=4)
    gateway = await serve("guessing", guessing)
    assert await greedy(gateway, REPEATED) == plain
    # Several tokens came in one step: the guesses were taken.
    [job] = gateway.events
    assert max(len(event[5]) for event in gateway.deltas(job)) > 1


@pytest.mark.parametrize("quantization", HERE)
async def test_weights_are_quantized_on_load_and_answer(
    serve: Callable[[str, EngineOptions], Awaitable[TestGateway]], quantization: str
) -> None:
    options = EngineOptions(
        quantization=quantization, context_length=CONTEXT, max_streams=8, kv_cache_bytes=128 * 2**20
    )
    text = await greedy(await serve(quantization, options), "The capital of France is", 8)
    assert "Paris" in text


async def test_where_guided_decoding_is_off_a_schema_is_refused_by_name(
    serve: Callable[[str, EngineOptions], Awaitable[TestGateway]],
) -> None:
    gateway = await serve("unguided", msgspec.structs.replace(PLAIN, guided_decoding="off"))
    job = gateway.submit(sampling={"max_tokens": 4, "json_schema": '{"type": "object"}'})
    last = (await gateway.ended(job))[-1]
    assert last[2] == ERROR
    assert last[3]["param"] == "json_schema"
    assert "guided decoding is off" in last[3]["message"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"max_batched_tokens": 4}, "max_num_batched_tokens"),
        ({"context_length": 1_000_000}, "max_model_len"),
        ({"tensor_parallel": 2}, "tensor parallel"),
        ({"speculation": "ngram"}, ""),
        ({"speculation": "telepathy"}, "method"),
        ({"dtype": "float7"}, "dtype"),
    ],
)
async def test_vllms_own_classes_check_options_without_a_load(
    node: Node, redis_url: str, smollm2: Path, gateway: TestGateway, change: dict[str, object], why: str
) -> None:
    await node.hears("template_ready", True)
    options = msgspec.structs.replace(PLAIN, **change)
    check = OptionsCheck(reply_to="answer", redis_url=redis_url, model_path=str(smollm2), options=options)
    node.command(check=msgspec.to_builtins(check))
    # An empty one is an answer too.
    [found] = await poll(lambda: gateway.connection.lrange("answer", 0, 0), "an answer")
    said = found.decode()
    assert (why in said.lower()) if why else said == ""
