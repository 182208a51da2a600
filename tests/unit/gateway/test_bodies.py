"""Bodies become plans; whatever is wrong is a 4xx that names the parameter."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.gateway.bodies import parse, parse_either
from mmserve.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> Any:
    return parse(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), "completions")


def chat(**fields: Any) -> Any:
    body = {"model": "m", "messages": MESSAGES, **fields}
    return parse(json.dumps(body).encode(), "chat.completions")


def refusal(body: bytes, endpoint: Any = "completions") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as error:
        parse(body, endpoint)
    return error.value


def test_completions_have_openais_defaults():
    plan = completion()
    assert (plan.sampling.max_tokens, plan.sampling.n, plan.sampling.temperature) == (16, 1, 1.0)
    assert plan.prompts == ["hi"]
    assert not plan.stream


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_the_four_shapes_of_a_prompt(prompt, prompts):
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [1, "a"], [[1], "a"], [-1], [2**40], [[2**40]]])
def test_empty_mixed_and_impossible_prompts_are_refused(prompt):
    error = refusal(json.dumps({"model": "m", "prompt": prompt}).encode())
    assert error.param.startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"n": 100, "prompt": ["a"] * 100}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"seed": 2**64}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"min_tokens": 20}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"what": 1}}, "stream_options.what"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"guided_json": "{"}, "guided_json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"priority": "urgent"}, "priority"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 2**31}, "deadline_ms"),
        ({"deadline_ms": 1.5}, "deadline_ms"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"metadata": {"k": "v" * 600}}, "metadata[...]"),
    ],
)
def test_a_completion_parameter_out_of_bounds_is_named(fields, param):
    assert refusal(json.dumps({"model": "m", "prompt": "hi", **fields}).encode()).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_chat_parameter_that_is_wrong_is_named(fields, param):
    body = json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode()
    assert refusal(body, "chat.completions").param == param


def test_features_that_are_missing_are_called_unsupported_not_unknown():
    body = json.dumps({"model": "m", "messages": MESSAGES, "tools": [{}]}).encode()
    assert refusal(body, "chat.completions").error_code == "unsupported_parameter"


def test_harmless_fields_of_openai_and_those_of_vllm_are_accepted():
    plan = chat(
        user="u", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True, tools=[],
        tool_choice="none", top_k=5, min_p=0.1, repetition_penalty=1.1, ignore_eos=True, stop_token_ids=[2],
        bad_words=["x"], priority=-1, modalities=["text"], max_completion_tokens=9,
    )  # fmt: skip
    sampling = plan.sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.1, 1.1)
    assert (sampling.max_tokens, sampling.ignore_eos, plan.priority) == (9, True, "high")


def test_an_answers_message_can_be_sent_back():
    sent_back = {"role": "assistant", "content": "hello", "refusal": None, "tool_calls": None, "audio": None}
    plan = chat(
        messages=[*MESSAGES, sent_back, {"role": "developer", "content": [{"type": "text", "text": "x"}]}]
    )
    assert [message["role"] for message in plan.messages] == ["user", "assistant", "system"]


def test_a_json_schema_travels_as_its_text():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    plan = chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert json.loads(plan.sampling.json_schema) == schema


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"model":"m","prompt":"\xff"}',
        b'{"model":"m","prompt":"\\ud800"}',
        b'{"model":"m","prompt":"a","temperature":NaN}',
        b'{"model":"m","prompt":"a","temperature":Infinity}',
        b'{"model":"m","prompt":"a","temperature":1e999}',
        b'{"model":"m","prompt":"a","seed":' + b"9" * 5000 + b"}",
        b'{"model":"m","prompt":' + b"[" * 200_000,
        b'{"model":"m","prompt":"a","guided_json":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"model":"m","prompt":"a","guided_json":' + b'{"a":' * 200 + b"1" + b"}" * 201,
        b'{"model":"m","prompt":"a"} trailing',
        b'{"model":"m","model":"n","prompt":"a"}',
        b'{"model":"m","prompt":"a","logit_bias":{"1":1,"1":2}}',
        b"{" * 10,
        b'{"prompt":"a"}',
        b'{"model":"","prompt":"a"}',
    ],
)
def test_hostile_json_is_an_envelope(body):
    error = refusal(body)
    assert error.status == 400
    assert error.message


def test_a_lone_surrogate_is_called_by_its_name():
    assert "surrogate" in refusal(b'{"model":"m","prompt":"\\ud800 and more"}').message


def test_predict_takes_either_shape_and_the_model_of_its_path():
    assert parse_either(b'{"prompt":"a"}', "m").endpoint == "completions"
    assert parse_either(json.dumps({"messages": MESSAGES}).encode(), "m").endpoint == "chat.completions"
    for body in (b'{"prompt":"a","messages":[]}', b"{}", b'{"prompt":"a","model":"other"}'):
        with pytest.raises(InvalidRequest):
            parse_either(body, "m")


texts = st.text(alphabet='ab"\\\0é☃😀', max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        "model",
        "prompt",
        "messages",
        "stop",
        "n",
        "logit_bias",
        "response_format",
        "guided_json",
        "stream_options",
    ]
)


@given(st.dictionaries(fields, json_values), st.sampled_from(["completions", "chat.completions"]))
def test_no_json_value_anywhere_breaks_the_parser(body, endpoint):
    with contextlib.suppress(InvalidRequest):
        parse(json.dumps(body).encode(), endpoint)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(body):
    with pytest.raises(InvalidRequest):
        parse(body, "completions")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ('"temperature": NaN', "temperature"),
        ('"logit_bias": {"7": -Infinity}', "logit_bias.7"),
        ('"user": "\\ud800"', "user"),
        ('"stop": ["a", "\\udfff"]', "stop[1]"),
        ('"metadata": {"a": "\\ud83d\\ud83d"}', "metadata.a"),
        ('"user": "é", "seed": NaN', "seed"),
    ],
)
def test_what_json_has_no_word_for_is_named_too(fields, param):
    body = f'{{"model": "m", "prompt": "x", {fields}}}'.encode()
    found = refusal(body, "completions")
    assert (found.param, found.error_code) == (param, "invalid_json")
    assert param in found.message


@pytest.mark.parametrize(
    "body", [b'{"model": NaN', b'{"a":' * 5000 + b"NaN" + b"}" * 5000, b'{"\\ud800": NaN}']
)
def test_a_body_that_no_parser_takes_is_refused_all_the_same(body):
    assert refusal(body, "completions").status == 400
