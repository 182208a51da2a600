"""A checked request, the same for both endpoints and all transports."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from inference.protocol import GenerateRequest, Sampling
from routing.core.route import NO_WISHES, Wishes

Endpoint = Literal["completions", "chat.completions"]

BYTES_PER_TOKEN = 4  # a guess for the reservation only; the engine's count settles it
DEFAULT_RESERVED_OUTPUT = 1024  # tokens reserved when the client sets no max_tokens
# What a chat template may add to a message, and to the whole (a system prompt of its own among it).
TEMPLATE_TOKENS_A_MESSAGE, TEMPLATE_TOKENS = 16, 128


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the client wants, in the engine's terms, and how it wants it answered."""

    endpoint: Endpoint
    model: str
    sampling: Sampling
    stream: bool
    include_usage: bool
    want_logprobs: bool
    prompts: list[str | list[int]] | None = None
    messages: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    echo: bool = False
    priority: str | None = None  # as it was asked for
    deadline_s: float | None = None
    wishes: Wishes = NO_WISHES
    # Who asks, for experiments: the body's user and metadata, the headers' session and language.
    user: str = ""
    tags: frozenset[str] = frozenset()
    session: str = ""
    language: str = ""

    @property
    def choices(self) -> int:
        """How many choices the answer has."""
        return self.sampling.n * (len(self.prompts) if self.prompts else 1)

    @property
    def longest_token_prompt(self) -> int | None:
        """Tokens of the longest prompt that came as tokens: what can be checked before an engine sees it."""
        counts = [len(one) for one in self.prompts or () if isinstance(one, list)]
        return max(counts) if counts else None

    @property
    def reserved_tokens(self) -> int:
        """A guess at the prompt's tokens and the most that may be made; settled when the answer is done."""
        return estimate_tokens(self) + (self.sampling.max_tokens or DEFAULT_RESERVED_OUTPUT) * self.choices

    def request(self, request_id: str, reply_to: str, deadline: float, priority: str) -> GenerateRequest:
        """The job's argument."""
        return GenerateRequest(
            request_id=request_id,
            reply_to=reply_to,
            deadline=deadline,
            sampling=self.sampling,
            prompts=self.prompts,
            messages=self.messages,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            add_special_tokens=self.add_special_tokens,
            echo=self.echo,
            priority=priority,
        )


def estimate_tokens(plan: Plan) -> int:
    """About how many tokens the prompt has."""
    tokens = 0
    for prompt in plan.prompts or ():
        tokens += len(prompt) if isinstance(prompt, list) else 1 + len(prompt) // BYTES_PER_TOKEN
    for message in plan.messages or ():
        tokens += 4 + len(message["content"] or "") // BYTES_PER_TOKEN
    return tokens


def most_prompt_tokens(plan: Plan) -> int:
    """A bound on the prompt's tokens: no tokenizer here makes more tokens than there are bytes."""
    tokens = 0
    for prompt in plan.prompts or ():
        tokens += len(prompt) if isinstance(prompt, list) else 1 + _bytes_of(prompt)
    for message in plan.messages or ():
        tokens += TEMPLATE_TOKENS_A_MESSAGE + _bytes_of(message["content"] or "")
    return tokens + (TEMPLATE_TOKENS if plan.messages else 0)


def longest_prompt_bound(plan: Plan) -> int:
    """The same for the longest of the prompts: what one context must hold."""
    if plan.messages is not None or len(plan.prompts or ()) < 2:
        return most_prompt_tokens(plan)
    return max(1 + (len(one) if isinstance(one, list) else _bytes_of(one)) for one in plan.prompts or ())


def text_of(plan: Plan) -> str:
    """What a scorer reads: the last message, or the first prompt."""
    if plan.messages:
        return str(plan.messages[-1]["content"] or "")
    return next((one for one in plan.prompts or () if isinstance(one, str)), "")


def _bytes_of(text: str) -> int:
    if text.isascii():
        return len(text)
    # Some tokenizers write compatibility characters out first, and a few become longer by it.
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))
