"""What an operator may ask of an engine beyond its defaults, with the real one on this CPU."""

from __future__ import annotations

import json
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
AGE = {"type": "integer", "maximum": 99}
SMOLLM2, OTHER = "where SmolLM2 lies", "one like it with another vocabulary"
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


@pytest.fixture(scope="module")
def small(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with SmolLM2's vocabulary, other sizes, and weights by lot: it guesses badly."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(smollm2)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 128, 256
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 1, 32
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


async def test_a_draft_model_guesses_and_the_greedy_text_stays_the_same(
    serve: Callable[[str, EngineOptions], Awaitable[TestGateway]], smollm2: Path, small: Path
) -> None:
    plain = await greedy(await serve("alone", PLAIN), REPEATED)
    for name, path in (("itself", smollm2), ("another", small)):
        options = msgspec.structs.replace(
            PLAIN, speculation="draft_model", speculative_tokens=3, draft_path=str(path)
        )
        gateway = await serve(name, options)
        assert await greedy(gateway, REPEATED) == plain
        [job] = gateway.events
        steps = [len(event[5]) for event in gateway.deltas(job) if event[5]]
        # What a model guesses of itself is right: three tokens and the one after them in each step.
        assert max(steps) == 4 if name == "itself" else max(steps) <= 4
        assert sum(steps) == 48
        beat = gateway.beat(name)
        assert beat is not None
        assert set(beat.memory) >= {"weights", "draft_weights", "kv_cache", "runtime"}
        if name == "itself":
            assert len(steps) == 13, "the first token, then 47 in twelve steps"
            assert beat.memory["draft_weights"] == beat.memory["weights"]
            await what_does_not_go_the_straight_way(gateway)


async def what_does_not_go_the_straight_way(gateway: TestGateway) -> None:
    """Schemas, log probabilities and several sampled choices, all at once."""
    schema = {"type": "object", "properties": {"age": AGE}, "required": ["age"]}
    limits = {"max_tokens": 60, "seed": 5}
    person = gateway.submit(prompts=["A person: "], sampling={**limits, "json_schema": json.dumps(schema)})
    likely = gateway.submit(prompts=[REPEATED], sampling={**limits, "temperature": 0.0, "logprobs": 2})
    several = gateway.submit(prompts=["A cat"], sampling={**limits, "n": 3, "ignore_eos": True})
    for job in (person, likely, several):
        assert (await gateway.ended(job))[-1][2] == DONE
    assert isinstance(json.loads(gateway.text(person))["age"], int)
    assert all(len(delta[6]) == len(delta[5]) for delta in gateway.deltas(likely))
    made = [sum(len(one[5]) for one in gateway.deltas(several) if one[3] == choice) for choice in range(3)]
    assert made == [60, 60, 60]


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
        ({"speculation": "draft_model", "draft_path": SMOLLM2}, ""),
        ({"speculation": "draft_model", "draft_path": OTHER}, "same vocabulary size"),
        ({"speculation": "draft_model", "draft_path": "/nowhere"}, "/nowhere"),
        ({"speculation": "draft_model"}, "needs a draft"),
        ({"max_batched_tokens": 4}, "max_num_batched_tokens"),
        ({"context_length": 1_000_000}, "max_model_len"),
        ({"tensor_parallel": 2}, "tensor parallel"),
        ({"speculation": "ngram"}, ""),
        ({"speculation": "telepathy"}, "method"),
        ({"dtype": "float7"}, "dtype"),
    ],
)
async def test_vllms_own_classes_check_options_without_a_load(
    node: Node,
    redis_url: str,
    smollm2: Path,
    gateway: TestGateway,
    tmp_path: Path,
    change: dict[str, object],
    why: str,
) -> None:
    await node.hears("template_ready", True)
    other = {**json.loads((smollm2 / "config.json").read_text()), "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(other))
    places = {SMOLLM2: str(smollm2), OTHER: str(tmp_path)}
    change = {name: places.get(str(value), value) for name, value in change.items()}
    options = msgspec.structs.replace(PLAIN, **change)
    check = OptionsCheck(reply_to="answer", redis_url=redis_url, model_path=str(smollm2), options=options)
    node.command(check=msgspec.to_builtins(check))
    # An empty one is an answer too.
    [found] = await poll(lambda: gateway.connection.lrange("answer", 0, 0), "an answer")
    said = found.decode()
    assert (why in said.lower()) if why else said == ""
