"""What counts as a refusal."""

import pytest

from inference.gateway.declining import is_refusal


@pytest.mark.parametrize(
    "opening",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I cannot help with this.",
        "I cannot provide instructions for that.",
        "I can't help with that.",
        "Sorry, I can't do it.",
        "As an AI language model, I cannot have opinions.",
        " I am unable to fulfil this request.",
        "I'm really sorry, but I'm not able to do that.",
    ],
)
def test_an_opening_that_declines_is_one(opening: str) -> None:
    assert is_refusal(opening)


@pytest.mark.parametrize(
    "opening",
    ["", "The capital of France is Paris.", "Sorry to hear that! Here is what you can do:", "I can help with that.",
     "I cannot recommend this book enough."],
)  # fmt: skip
def test_an_opening_that_answers_is_none(opening: str) -> None:
    assert not is_refusal(opening)
