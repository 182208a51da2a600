"""From messages or prompts to token ids within the model's context."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from inference.protocol import GenerateRequest
from mmserve.errors import ContextLengthExceeded, InvalidRequest


class Prompt(NamedTuple):
    """One prompt, ready for the engine."""

    token_ids: list[int]
    text: str | None  # None if it came as tokens


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    max_chars_per_token: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> str: ...


# What a caller may not pass to a chat template: ours, or transformers' own arguments.
RESERVED_TEMPLATE_KWARGS = frozenset(
    {"conversation", "messages", "chat_template", "tokenize", "return_dict", "return_tensors", "padding"}
    | {"truncation", "max_length", "tokenizer_kwargs", "add_generation_prompt", "continue_final_message"}
)


def tokenized(
    request: GenerateRequest, tokenizer: Tokenizer, *, context: int, vocabulary: int
) -> list[Prompt]:
    """The request's prompts; raises an error that names the field."""
    if request.messages is not None:
        text = rendered(request, tokenizer)
        return [Prompt(_encode(text, tokenizer, context, "messages", add_special_tokens=False), text)]
    if not request.prompts:
        raise InvalidRequest("either prompt or messages must be given", param="prompt")
    return [_one(prompt, request, tokenizer, context, vocabulary) for prompt in request.prompts]


def rendered(request: GenerateRequest, tokenizer: Tokenizer) -> str:
    """The conversation as the checkpoint's own chat template has it."""
    if not tokenizer.chat_template:
        raise InvalidRequest(
            "this model has no chat template: it completes text; send a prompt to /v1/completions instead",
            param="messages",
            code="no_chat_template",
        )
    extra = request.chat_template_kwargs or {}
    refused = RESERVED_TEMPLATE_KWARGS & extra.keys()
    if refused:
        raise InvalidRequest(
            f"chat_template_kwargs may not set {sorted(refused)[0]}", param="chat_template_kwargs"
        )
    if not request.messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    try:
        return tokenizer.apply_chat_template(
            [_flattened(message) for message in request.messages],
            tokenize=False,
            add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
            continue_final_message=request.continue_final_message,
            **extra,
        )
    except Exception as error:  # noqa: BLE001 a template is a program of the model's author, and may raise anything
        raise InvalidRequest(f"the chat template refused the messages: {error}", param="messages") from None


def output_budget(prompt_tokens: int, max_tokens: int | None, context: int, param: str) -> int:
    """Tokens that may be generated: what was asked for, or all that is left."""
    asked = 1 if max_tokens is None else max_tokens
    if prompt_tokens + asked > context:
        wish = "" if max_tokens is None else f" and asks for {max_tokens} more"
        raise ContextLengthExceeded(
            f"This model's context holds {context} tokens. The request has {prompt_tokens} in {param}{wish}, "
            f"{prompt_tokens + asked} in all. Shorten {param} or lower max_tokens.",
            param=param,
        )
    return context - prompt_tokens if max_tokens is None else max_tokens


def _one(
    prompt: str | list[int], request: GenerateRequest, tokenizer: Tokenizer, context: int, vocabulary: int
) -> Prompt:
    if isinstance(prompt, str):
        ids = _encode(prompt, tokenizer, context, "prompt", add_special_tokens=request.add_special_tokens)
        text: str | None = prompt
    else:
        ids, text = list(prompt), None
        for token in ids:
            if not 0 <= token < vocabulary:
                raise InvalidRequest(
                    f"token id {token} is not in the vocabulary of {vocabulary} tokens", param="prompt"
                )
    if not ids:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    return Prompt(ids, text)


def _encode(
    text: str, tokenizer: Tokenizer, context: int, param: str, *, add_special_tokens: bool
) -> list[int]:
    at_least = len(text) // max(1, tokenizer.max_chars_per_token)
    if at_least > context:
        raise ContextLengthExceeded(
            f"This model's context holds {context} tokens. The request has at least {at_least} in {param}.",
            param=param,
        )
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except (UnicodeEncodeError, TypeError):
        raise InvalidRequest(
            f"{param} is not valid Unicode: it holds a lone surrogate", param=param
        ) from None


def _flattened(message: dict[str, Any]) -> dict[str, Any]:
    """Text parts become one string, because most templates know nothing else."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise InvalidRequest("this model takes content parts of type text only", param="messages")
        texts.append(text)
    return {**message, "content": "\n".join(texts)}
