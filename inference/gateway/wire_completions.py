"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inference.gateway.plan import Plan
from inference.gateway.wire import (
    MAX_INT32,
    SharedFields,
    deadline_s_of,
    priority_of,
    refuse_unsupported,
    sampling_of,
    tags_of,
)
from inference.gateway.wire_formats import ResponseFormat, apply_response_format
from inference.gateway.wishes import wishes_of_body
from mmserve.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 256
MAX_CHOICES = 512

Prompt = str | list[str | int | list[int]]

UNSUPPORTED = {
    "suffix": "the models here continue a text, they do not fill a gap",
}


class CompletionBody(SharedFields, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's CreateCompletionRequest with vLLM's additions."""

    prompt: Prompt
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = (
        None  # 0 with echo: only the prompt's logprobs
    )
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None


def plan_completion(body: CompletionBody, model: str) -> Plan:
    """Check what types cannot say, and put the request in the engine's terms."""
    refuse_unsupported(body, UNSUPPORTED)
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise InvalidRequest(
            f"best_of ({body.best_of}) beyond n ({body.n or 1}) is not supported.",
            param="best_of",
            code="unsupported_parameter",
        )
    prompts = prompts_of(body.prompt)
    choices = len(prompts) * (body.n or 1)
    if choices > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts with n={body.n} are more than {MAX_CHOICES} choices.", param="n"
        )
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    sampling = sampling_of(body, max_tokens=max_tokens, logprobs=body.logprobs)
    if body.echo:
        sampling.prompt_logprobs = body.logprobs
    apply_response_format(sampling, body.response_format)
    return Plan(
        endpoint="completions",
        model=model,
        sampling=sampling,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        want_logprobs=body.logprobs is not None,
        prompts=prompts,
        add_special_tokens=body.add_special_tokens is not False,
        echo=bool(body.echo),
        priority=priority_of(body),
        wishes=wishes_of_body(body.mmserve),
        deadline_s=deadline_s_of(body),
        user=body.user or "",
        tags=tags_of(body),
    )


def prompts_of(prompt: Any) -> list[str | list[int]]:
    """A text, texts, tokens, or lists of tokens: always a list of prompts, none of them empty."""
    if isinstance(prompt, str):
        prompts: list[str | list[int]] = [prompt]
    elif not prompt:
        raise InvalidRequest("prompt must not be empty.", param="prompt")
    elif all(type(part) is int for part in prompt):
        prompts = [prompt]
    elif all(isinstance(part, str) for part in prompt) or all(isinstance(part, list) for part in prompt):
        prompts = prompt
    else:
        raise InvalidRequest(
            "prompt must be a string, an array of strings, of tokens, or of token arrays, not a mix.",
            param="prompt",
        )
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(f"{len(prompts)} prompts are more than {MAX_PROMPTS}.", param="prompt")
    for one in prompts:
        if not one:
            raise InvalidRequest("prompt must not be empty.", param="prompt")
        if isinstance(one, list) and (min(one) < 0 or max(one) > MAX_INT32):
            raise InvalidRequest("prompt: a token id is not in the vocabulary.", param="prompt")
    return prompts


decoder = msgspec.json.Decoder(CompletionBody)
