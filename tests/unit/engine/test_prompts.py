"""From messages and prompts to tokens within the context."""

from __future__ import annotations

from typing import Any

import pytest

from inference.engine.prompts import output_budget, tokenized
from inference.protocol import GenerateRequest, Sampling
from mmserve.errors import ContextLengthExceeded, InvalidRequest


class Letters:
    """A tokenizer with one token a character."""

    chat_template: Any = "template"
    max_chars_per_token = 1

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        text.encode()
        return [*([0] if add_special_tokens else []), *map(ord, text)]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> str:
        if any(message["role"] == "tool" for message in conversation):
            raise ValueError("no tools here")
        return "|".join(message["content"] for message in conversation)


class Base(Letters):
    chat_template = None


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest(request_id="r", reply_to="c", deadline=0.0, sampling=Sampling(), **fields)


def tokens(asked: GenerateRequest, tokenizer: Letters | None = None, context: int = 50) -> list[list[int]]:
    found = tokenized(asked, tokenizer or Letters(), context=context, vocabulary=200)
    return [prompt.token_ids for prompt in found]


def test_prompts_may_be_text_or_tokens() -> None:
    assert tokens(request(prompts=["AB", [7, 8]])) == [[0, 65, 66], [7, 8]]


def test_text_parts_of_a_message_become_one_text() -> None:
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    assert tokens(request(messages=[{"role": "user", "content": parts}])) == [[65, 10, 66]]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompts": [[5, 200]]}, "prompt", "200 is not in the vocabulary"),
        ({"prompts": [[-1]]}, "prompt", "not in the vocabulary"),
        ({"prompts": [[]]}, "prompt", "no tokens"),
        ({"prompts": []}, "prompt", "must be given"),
        ({"prompts": ["\ud800"]}, "prompt", "surrogate"),
        ({"messages": []}, "messages", "must not be empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "no tools here"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "type text"),
        (
            {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs",
            "tokenize",
        ),
    ],
)
def test_a_bad_prompt_is_refused_with_its_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        tokens(request(**fields))
    assert caught.value.param == param


def test_a_model_without_chat_template_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokens(request(messages=[{"role": "user", "content": "x"}]), Base())


def test_a_context_exceeded_is_told_with_both_numbers() -> None:
    with pytest.raises(ContextLengthExceeded, match="holds 50 tokens.*45 in prompt and asks for 10"):
        output_budget(45, 10, 50, "prompt")
    assert output_budget(45, None, 50, "messages") == 5
    assert output_budget(40, 10, 50, "prompt") == 10


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized() -> None:
    with pytest.raises(ContextLengthExceeded, match="at least 5000"):
        tokens(request(prompts=["x" * 5000]))
