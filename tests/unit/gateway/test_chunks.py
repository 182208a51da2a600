"""The hand-built bytes are the JSON that OpenAI's clients expect."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.completion import Completion

from inference.gateway.chunks import Chunks, usage_of
from inference.gateway.logprobs import completion_logprobs
from inference.protocol import DELTA
from tests.unit.gateway.flights import plan

ENTRY = {
    "token": "hi",
    "logprob": -0.5,
    "bytes": [104, 105],
    "top": [{"token": "yo", "logprob": -1.0, "bytes": [1]}],
}


def delta(text: str, *, index: int = 0, logprobs: object = None, finish: str | None = None) -> list:
    return ["j", 0, DELTA, index, text, [1], logprobs, finish, None]


def loaded(chunk: bytes) -> dict:
    assert chunk.startswith(b"data: ")
    assert chunk.endswith(b"\n\n")
    return json.loads(chunk[6:])


def chunks(endpoint: str = "chat.completions", **more: object) -> Chunks:
    return Chunks(plan(endpoint, **more), "id-1", 123)


@given(st.text(alphabet='ab"\\\n\r\0é☃😀\u2028', min_size=1), st.integers(0, 3))
def test_any_text_survives(text, index):
    (chat,) = chunks().delta(delta(text, index=index))
    (completion,) = chunks("completions").delta(delta(text, index=index))
    assert loaded(chat)["choices"] == [
        {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    ]
    assert loaded(completion)["choices"] == [
        {"index": index, "text": text, "logprobs": None, "finish_reason": None}
    ]
    assert chat.count(b"\n") == 2


def test_the_chunks_are_valid_for_the_official_client():
    made = chunks()
    found = (
        made.opening(2) + made.delta(delta("hi")) + made.delta(delta("yo", logprobs=[ENTRY], finish="stop"))
    )
    found.append(made.usage(usage_of(1, 2, 0)))
    parsed = [ChatCompletionChunk.model_validate(loaded(chunk), strict=False) for chunk in found]
    assert [one.choices[0].delta.role for one in parsed[:2]] == ["assistant", "assistant"]
    assert parsed[-2].choices[0].finish_reason == "stop"
    assert parsed[-3].choices[0].logprobs.content[0].top_logprobs[0].token == "yo"
    assert parsed[-1].usage.total_tokens == 3
    for chunk in chunks("completions").delta(delta("hi", logprobs=[ENTRY], finish="length")):
        assert Completion.model_validate(loaded(chunk)).choices[0].finish_reason == "length"


def test_the_role_comes_once_and_only_in_chat():
    made = chunks()
    assert len(made.opening(3)) == 3
    assert made.opening(3) == []
    assert chunks("completions").opening(3) == []


def test_usage_is_null_on_every_chunk_only_when_it_was_asked_for():
    asked = chunks(include_usage=True)
    found = asked.opening(1) + asked.delta(delta("a")) + asked.delta(delta("", finish="stop"))
    assert all(loaded(chunk)["usage"] is None for chunk in found)
    assert all("usage" not in loaded(chunk) for chunk in chunks().delta(delta("a")))


def test_a_token_without_text_makes_no_chunk():
    assert chunks().delta(delta("")) == []


def test_text_offsets_go_on_from_chunk_to_chunk():
    made = chunks("completions")
    offsets = [
        loaded(chunk)["choices"][0]["logprobs"]["text_offset"]
        for _ in range(2)
        for chunk in made.delta(delta("hi", logprobs=[ENTRY]))
    ]
    assert offsets == [[0], [2]]


def test_the_first_token_of_an_echoed_prompt_has_text_but_no_probability():
    found = completion_logprobs([None, ENTRY], "Ohi")
    assert found == {
        "tokens": ["O", "hi"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"hi": -0.5, "yo": -1.0}],
        "text_offset": [0, 1],
    }
