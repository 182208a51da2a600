"""Real vLLM with SmolLM2 in float32, end to end through Redis."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.engine import environment
from inference.protocol import ACCEPTED, DONE, ERROR, control_channel
from tests.integration.engine.conftest import CONTEXT, REAL
from tests.integration.engine.gateway import TestGateway, poll

pytestmark = pytest.mark.vllm

GREEDY = {"temperature": 0.0}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
STORY = "Once upon a time, in a small village by the sea, there lived"
# Multi-byte characters come in several tokens each, so that many cuts fall inside one.
MANY_BYTES = "Copy this exactly, again and again: 你好😀世界🚀 你好😀世界🚀 你好😀世界🚀 你好😀"


async def answer(vllm: TestGateway, **request: Any) -> str:
    """The text of a request's only choice."""
    job_id = vllm.submit(**request)
    events = await vllm.ended(job_id)
    assert events[-1][2] == DONE, events[-1]
    return vllm.text(job_id)


async def refusal(vllm: TestGateway, **request: Any) -> dict[str, Any]:
    """The error of a request that must be refused."""
    events = await vllm.ended(vllm.submit(**request))
    assert events[-1][2] == ERROR, events[-1]
    return events[-1][3]


async def test_a_chat_is_answered_token_by_token(vllm: TestGateway) -> None:
    job_id = vllm.submit(messages=CAPITAL, sampling={**GREEDY, "max_tokens": 30})
    events = await vllm.ended(job_id)
    assert events[0][2] == ACCEPTED
    assert "Paris" in vllm.text(job_id)
    assert len(vllm.deltas(job_id)) > 3
    assert vllm.deltas(job_id)[-1][7] == "stop"
    usage = events[-1][3]
    assert usage["prompt_tokens"] == sum(events[0][4])
    assert usage["completion_tokens"] == len(vllm.tokens(job_id))
    assert 0 <= usage["queued_s"] <= usage["ttft_s"] <= usage["e2e_s"]


async def test_without_max_tokens_a_chat_may_use_all_that_is_left(vllm: TestGateway) -> None:
    job_id = vllm.submit(messages=CAPITAL, sampling={**GREEDY, "ignore_eos": True})
    usage = (await vllm.ended(job_id))[-1][3]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == CONTEXT


async def test_eight_at_once_each_get_their_own_answer(vllm: TestGateway) -> None:
    beginnings = ("A cat", "The sea", "My car", "Rome", "Bread", "Music", "Water", "Trains")
    prompts = [f"{beginning} is" for beginning in beginnings]
    sampling = {**GREEDY, "max_tokens": 24, "ignore_eos": True}
    alone = [await answer(vllm, prompts=[prompt], sampling=sampling) for prompt in prompts]
    ids = [vllm.submit(prompts=[prompt], sampling=sampling) for prompt in prompts]
    for job_id in ids:
        await vllm.ended(job_id)
    assert [vllm.text(job_id) for job_id in ids] == alone
    assert len(set(alone)) == len(alone)


async def test_every_prompt_has_n_choices(vllm: TestGateway) -> None:
    tokens = [504, 3575, 282]  # "The capital of"
    job_id = vllm.submit(
        prompts=[STORY, tokens], sampling={"n": 2, "max_tokens": 6, "ignore_eos": True, "seed": 5}
    )
    events = await vllm.ended(job_id)
    assert {event[3] for event in vllm.deltas(job_id)} == {0, 1, 2, 3}
    assert [len(vllm.tokens(job_id, index)) for index in range(4)] == [6, 6, 6, 6]
    assert len(events[0][4]) == 2
    assert events[0][4][1] == len(tokens)
    assert events[-1][3]["completion_tokens"] == 24


async def test_logprobs_of_a_greedy_answer_name_its_tokens_first(vllm: TestGateway) -> None:
    job_id = vllm.submit(prompts=[STORY], sampling={**GREEDY, "max_tokens": 5, "logprobs": 3})
    await vllm.ended(job_id)
    entries = [entry for delta in vllm.deltas(job_id) for entry in delta[6]]
    assert len(entries) == 5
    for entry in entries:
        assert len(entry["top"]) == 3
        assert entry["top"][0]["token"] == entry["token"]
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert sum(math.exp(top["logprob"]) for top in entry["top"]) <= 1.0001


async def test_an_echo_comes_first_with_the_prompts_logprobs(vllm: TestGateway) -> None:
    job_id = vllm.submit(prompts=[STORY], echo=True, sampling={**GREEDY, "max_tokens": 2, "logprobs": 0})
    events = await vllm.ended(job_id)
    echo = vllm.deltas(job_id)[0]
    assert echo[4] == STORY
    assert len(echo[5]) == len(echo[6]) == events[0][4][0]
    assert echo[6][0] is None
    assert all(entry["logprob"] <= 0 for entry in echo[6][1:])


async def test_no_tokens_with_echo_is_the_prompt_alone(vllm: TestGateway) -> None:
    job_id = vllm.submit(prompts=[STORY], echo=True, sampling={"max_tokens": 0})
    usage = (await vllm.ended(job_id))[-1][3]
    assert vllm.text(job_id) == STORY
    assert usage["completion_tokens"] == 0


async def test_a_json_schema_is_obeyed(vllm: TestGateway) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    text = await answer(
        vllm, prompts=["A person: "], sampling={**GREEDY, "max_tokens": 80, "json_schema": json.dumps(schema)}
    )
    person = json.loads(text)
    assert set(person) == {"name", "age"}
    assert person["age"] <= 99


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        ({"choice": ["red", "blue"]}, {"red", "blue"}),
        ({"regex": "(ab|cd){2}"}, {"abab", "abcd", "cdab", "cdcd"}),
        ({"grammar": 'root ::= "yes" | "no"'}, {"yes", "no"}),
    ],
)
async def test_a_constraint_is_obeyed(
    vllm: TestGateway, constraint: dict[str, Any], allowed: set[str]
) -> None:
    assert await answer(vllm, prompts=["Say: "], sampling={"max_tokens": 20, **constraint}) in allowed


async def test_a_stop_string_ends_the_answer_before_it(vllm: TestGateway) -> None:
    sampling = {**GREEDY, "max_tokens": 60, "ignore_eos": True}
    whole = await answer(vllm, prompts=[STORY], sampling=sampling)
    stop = whole[30:36]
    job_id = vllm.submit(prompts=[STORY], sampling={**sampling, "stop": [stop]})
    await vllm.ended(job_id)
    assert vllm.text(job_id) == whole[: whole.index(stop)]
    assert vllm.deltas(job_id)[-1][7:9] == ["stop", stop]


async def test_a_seed_makes_sampling_repeatable(vllm: TestGateway) -> None:
    sampling = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    first = await answer(vllm, prompts=[STORY], sampling=sampling)
    assert await answer(vllm, prompts=[STORY], sampling=sampling) == first
    assert await answer(vllm, prompts=[STORY], sampling={**sampling, "seed": 8}) != first


async def test_a_logit_bias_moves_the_choice(vllm: TestGateway) -> None:
    job_id = vllm.submit(prompts=[STORY], sampling={**GREEDY, "max_tokens": 3, "logit_bias": {"504": 100.0}})
    await vllm.ended(job_id)
    assert vllm.tokens(job_id) == [504, 504, 504]


@pytest.mark.parametrize(
    ("request_fields", "param"),
    [
        ({"sampling": {"regex": "[a-z"}}, "regex"),
        ({"sampling": {"json_schema": "{broken"}}, "json_schema"),
        ({"sampling": {"json_schema": '{"type": "no such type"}'}}, "json_schema"),
        ({"sampling": {"grammar": "root ::= nowhere"}}, "grammar"),
        ({"sampling": {"grammar": ""}}, "grammar"),
        ({"sampling": {"choice": []}}, "choice"),
        ({"sampling": {"regex": "a", "choice": ["b"]}}, "choice"),
        ({"sampling": {"temperature": -1.0}}, "temperature"),
        ({"sampling": {"top_p": 7.0}}, "top_p"),
        ({"sampling": {"logprobs": 1000}}, "logprobs"),
        ({"sampling": {"logit_bias": {"99999999": 1.0}}}, "logit_bias"),
        ({"sampling": {"logit_bias": {"cat": 1.0}}}, "logit_bias"),
        ({"sampling": {"stop_token_ids": [-4]}}, "stop_token_ids"),
        ({"sampling": {"min_tokens": 50, "max_tokens": 5}}, "min_tokens"),
        ({"prompts": [[99_999_999]]}, "prompt"),
        ({"prompts": [[-1]]}, "prompt"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ],
)
async def test_a_bad_request_names_its_parameter_and_disturbs_nobody(
    vllm: TestGateway, request_fields: dict[str, Any], param: str
) -> None:
    sampling = {**GREEDY, "max_tokens": 12, "ignore_eos": True}
    other = vllm.submit(prompts=[STORY], sampling=sampling)
    error = await refusal(vllm, **request_fields)
    assert error["param"] == param
    assert error["code"] == "invalid_value"
    assert (await vllm.ended(other))[-1][3]["completion_tokens"] == 12


async def test_a_context_exceeded_is_told_with_both_numbers(vllm: TestGateway) -> None:
    error = await refusal(vllm, prompts=[[504] * 200], sampling={"max_tokens": 100})
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    assert {"256", "200", "100"} <= set(error["message"].replace(".", "").split())


async def test_a_prompt_of_megabytes_is_refused_while_others_go_on(vllm: TestGateway) -> None:
    error = await refusal(vllm, prompts=["word " * 1_000_000])
    assert error["code"] == "context_length_exceeded"


async def test_a_cancelled_answer_leaves_the_batch(vllm: TestGateway) -> None:
    job_id = vllm.submit(prompts=[STORY], sampling={"n": 3, "ignore_eos": True, "max_tokens": 200})
    await vllm.spoken(job_id, 3)
    await vllm.cancel(REAL, job_id)
    events = await vllm.ended(job_id)
    assert events[-1][3]["completion_tokens"] < 600
    await poll(
        lambda: (beat := vllm.beat(REAL)) and beat.running == 0 and beat.kv_usage == 0, "an empty batch"
    )


async def test_a_deadline_ends_an_answer(vllm: TestGateway) -> None:
    job_id = vllm.submit(
        prompts=[STORY, STORY], deadline_s=0.5, sampling={"ignore_eos": True, "max_tokens": 200, "n": 4}
    )
    assert (await vllm.ended(job_id))[-1][3]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("prompt", [STORY, MANY_BYTES])
async def test_an_answer_is_continued_exactly_from_any_token(vllm: TestGateway, prompt: str) -> None:
    sampling = {**GREEDY, "max_tokens": 40, "ignore_eos": True}
    whole_id = vllm.submit(prompts=[prompt], sampling=sampling)
    usage = (await vllm.ended(whole_id))[-1][3]
    whole, tokens = vllm.text(whole_id), vllm.tokens(whole_id)
    for cut in (1, 2, 3, 7, 13, 14, 15, 39, 40):
        said = "".join(delta[4] for delta in vllm.deltas(whole_id)[:cut])
        rest_id = vllm.submit(prompts=[prompt], sampling=sampling, resume_token_ids=tokens[:cut])
        events = await vllm.ended(rest_id)
        assert said + vllm.text(rest_id) == whole, f"cut after {cut} tokens"
        assert tokens[:cut] + vllm.tokens(rest_id) == tokens
        assert vllm.deltas(rest_id)[-1][7] == "length"
        assert {name: events[-1][3][name] for name in ("prompt_tokens", "completion_tokens")} == {
            name: usage[name] for name in ("prompt_tokens", "completion_tokens")
        }


async def test_a_stop_string_across_the_cut_still_stops(vllm: TestGateway) -> None:
    sampling = {**GREEDY, "max_tokens": 40, "ignore_eos": True}
    whole = await answer(vllm, prompts=[STORY], sampling=sampling)
    stopping = {**sampling, "stop": [whole[40:60]]}
    stopped_id = vllm.submit(prompts=[STORY], sampling=stopping)
    await vllm.ended(stopped_id)
    tokens = vllm.tokens(stopped_id)
    for cut in range(max(1, len(tokens) - 6), len(tokens)):
        said = "".join(delta[4] for delta in vllm.deltas(stopped_id)[:cut])
        rest_id = vllm.submit(prompts=[STORY], sampling=stopping, resume_token_ids=tokens[:cut])
        await vllm.ended(rest_id)
        assert said + vllm.text(rest_id) == vllm.text(stopped_id), f"cut after {cut} tokens"


@pytest.mark.parametrize(
    ("sampling", "code"),
    [
        ({"choice": ["red"]}, "engine_lost"),
        ({"presence_penalty": 1.0}, "engine_lost"),
        ({"n": 2}, "invalid_value"),
    ],
)
async def test_what_cannot_go_on_exactly_is_not_continued(
    vllm: TestGateway, sampling: dict[str, Any], code: str
) -> None:
    error = await refusal(vllm, prompts=[STORY], sampling=sampling, resume_token_ids=[504])
    assert error["code"] == code


async def test_a_cpu_has_no_rung_to_rest_on_and_serves_on_when_it_is_told_to(vllm: TestGateway) -> None:
    beat = vllm.beat(REAL)
    assert beat is not None
    assert (beat.rungs, beat.rung) == ([], "serving")
    message = {"type": "engine.sleep", "rung": "asleep", "deadline_s": 1.0}
    await vllm.layer.send(control_channel(REAL), message)
    assert await answer(vllm, prompts=[STORY], sampling={**GREEDY, "max_tokens": 4})


def test_the_checks_after_a_wake_tell_the_same_weights_from_others(smollm2: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.engine.checked_engine", str(smollm2)],
        capture_output=True,
        text=True,
        timeout=170,
        env={**os.environ, "LD_PRELOAD": environment.preload()},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["rungs"] == []
    assert found["before"] == found["after"]
    assert len(found["before"][1]) == 1
    assert not found["busy"]
    assert found["zeroed"][0] != found["before"][0]
    assert found["zeroed"][1] != found["before"][1]
