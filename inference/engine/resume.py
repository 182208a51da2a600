"""Continues the text of an answer whose engine died, exactly where it stopped.

The engine takes prompt and answer so far as one prompt. Its detokenizer must not: an answer may stop inside a
character or inside a half-matched stop string, whose text the dead engine had held back. So a detokenizer is
primed with the prompt alone and led through the tokens of the dead engine again.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from vllm.v1.engine.detokenizer import IncrementalDetokenizer


class _PromptOnly:
    """The request as the detokenizer wants it: before the answer began."""

    def __init__(self, request_id: str, params: Any, prompt_token_ids: list[int]) -> None:
        self.request_id = request_id
        self.sampling_params = params
        self.prompt_token_ids = prompt_token_ids
        self.prompt_embeds = None


def led_detokenizer(
    tokenizer: Any,
    *,
    request_id: str,
    params: Any,
    min_tokens: int,
    prompt_token_ids: list[int],
    answer_token_ids: list[int],
) -> IncrementalDetokenizer:
    """A detokenizer that has said all that the dead engine had said, and holds back what it had held back."""
    whole = copy(params)
    whole.min_tokens = min_tokens
    detokenizer = IncrementalDetokenizer.from_new_request(
        tokenizer, _PromptOnly(request_id, whole, prompt_token_ids)
    )
    detokenizer.update(answer_token_ids, False)
    detokenizer.get_next_output_text(False, True)
    return detokenizer
