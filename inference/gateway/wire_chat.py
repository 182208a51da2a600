"""The body of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference.gateway.plan import Plan
from inference.gateway.strict_json import refuse_deep
from inference.gateway.wire import (
    Count,
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

MAX_MESSAGES = 4096
MAX_PARTS = 256

NO_TOOLS = "the models here call no tools"
UNSUPPORTED = {
    "tools": NO_TOOLS,
    "functions": NO_TOOLS,
    "audio": "the models here read and write text only",
    "prediction": "there are no predicted outputs here",
    "web_search_options": "there is no web search here",
    "reasoning_effort": "the models here have no reasoning levels",
    "verbosity": "the models here have no verbosity levels",
}
# Template arguments that would replace what the server itself decides.
RESERVED_TEMPLATE_KWARGS = ("chat_template", "tokenize", "conversation", "messages", "return_dict", "tools")


class Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One content part; only ``text`` is understood, the others are refused by name."""

    type: Annotated[str, Meta(max_length=40)]
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    video_url: Any = None
    refusal: Any = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message; the fields after ``name`` come back when a client sends an answer's message on."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(min_length=1, max_length=MAX_PARTS)] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None


class ChatBody(SharedFields, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's CreateChatCompletionRequest with vLLM's additions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    modalities: list[str] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Any = None
    function_call: Any = None
    tools: Any = None
    functions: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None


def plan_chat(body: ChatBody, model: str) -> Plan:
    """Check what types cannot say, and put the request in the engine's terms."""
    refuse_unsupported(body, UNSUPPORTED)
    for field in ("tool_choice", "function_call"):
        if getattr(body, field) not in (None, "none", "auto"):
            raise InvalidRequest(
                f"{field} needs tools, and {NO_TOOLS}.", param=field, code="unsupported_parameter"
            )
    if body.modalities and body.modalities != ["text"]:
        raise InvalidRequest(
            "modalities: only text is supported.", param="modalities", code="unsupported_parameter"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt cannot both be true.",
            param="continue_final_message",
        )
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidRequest("max_tokens and max_completion_tokens disagree; give one.", param="max_tokens")
    sampling = sampling_of(
        body,
        max_tokens=limits.pop() if limits else None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    apply_response_format(sampling, body.response_format)
    return Plan(
        endpoint="chat.completions",
        model=model,
        sampling=sampling,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        want_logprobs=bool(body.logprobs),
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)],
        chat_template_kwargs=_template_kwargs(body.chat_template_kwargs),
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
        priority=priority_of(body),
        wishes=wishes_of_body(body.mmserve),
        deadline_s=deadline_s_of(body),
        user=body.user or "",
        tags=tags_of(body),
    )


def _message(message: Message, param: str) -> dict[str, Any]:
    if message.role in ("tool", "function"):
        raise InvalidRequest(
            f"{param}.role: {message.role!r} needs tools, and {NO_TOOLS}.", param=f"{param}.role"
        )
    for field in ("tool_calls", "function_call", "audio"):
        if getattr(message, field):
            raise InvalidRequest(
                f"{param}.{field} is not supported.", param=f"{param}.{field}", code="unsupported_parameter"
            )
    if message.content is None:
        raise InvalidRequest(f"Missing required parameter: {param}.content", param=f"{param}.content")
    # "developer" is OpenAI's newer name of the same role; chat templates know only "system".
    plain = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message, param),
    }
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _text(message: Message, param: str) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for index, part in enumerate(message.content or ()):
        where = f"{param}.content[{index}]"
        if part.type != "text":
            raise InvalidRequest(
                f"{where}: {part.type!r} parts are not supported, only text.",
                param=f"{where}.type",
                code="unsupported_parameter",
            )
        if part.text is None:
            raise InvalidRequest(f"Missing required parameter: {where}.text", param=f"{where}.text")
        texts.append(part.text)
    return "\n".join(texts)


def _template_kwargs(given: dict[str, Any] | None) -> dict[str, Any] | None:
    for name in RESERVED_TEMPLATE_KWARGS:
        if name in (given or ()):
            raise InvalidRequest(
                f"chat_template_kwargs.{name} is the server's to set.", param=f"chat_template_kwargs.{name}"
            )
    if given:
        refuse_deep(given, "chat_template_kwargs")
    return given or None


decoder = msgspec.json.Decoder(ChatBody)
