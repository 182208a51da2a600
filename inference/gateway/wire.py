"""What both OpenAI endpoints share: the sampling fields, their bounds, and how they become ``Sampling``.

Fields that vLLM adds to OpenAI's are accepted under vLLM's names. A field that OpenAI has and mmserve has not
is declared too, so that its refusal can say so instead of calling it unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference.gateway.strict_json import refuse_deep
from inference.gateway.wishes import RoutingWishes
from inference.protocol import Sampling
from mmserve.errors import InvalidRequest

MAX_STOP = 4
MAX_INT32 = 2**31 - 1

Name = Annotated[str, Meta(min_length=1, max_length=300)]
ShortText = Annotated[str, Meta(max_length=512)]
Count = Annotated[int, Meta(ge=1, le=MAX_INT32)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], ShortText], Meta(max_length=16)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``stream_options``; obfuscation is a field of OpenAI's that changes nothing here."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's ``structured_outputs``: at most one of these."""

    json: str | dict[str, Any] | None = None
    regex: Annotated[str, Meta(min_length=1, max_length=16384)] | None = None
    choice: Annotated[list[StopText], Meta(min_length=1, max_length=256)] | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=65536)] | None = None
    json_object: bool | None = None


class SharedFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of both endpoints."""

    model: Name | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=MAX_STOP)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] | None = None

    # vLLM's
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    bad_words: Annotated[list[StopText], Meta(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: Annotated[str, Meta(min_length=1, max_length=16384)] | None = None
    guided_choice: Annotated[list[StopText], Meta(min_length=1, max_length=256)] | None = None
    guided_grammar: Annotated[str, Meta(min_length=1, max_length=65536)] | None = None
    priority: int | Literal["high", "normal", "low"] | None = None

    # Ours: how long this request may take; never longer than its deployment allows
    deadline_ms: Count | None = None

    # ours
    mmserve: RoutingWishes | None = None

    # OpenAI's, without an effect on a self-hosted model
    user: ShortText | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: ShortText | None = None


def refuse_unsupported(body: msgspec.Struct, reasons: dict[str, str]) -> None:
    """Name the first field that was asked for and that this server does not have."""
    for field, reason in reasons.items():
        if getattr(body, field):
            raise InvalidRequest(
                f"{field} is not supported: {reason}.", param=field, code="unsupported_parameter"
            )


def sampling_of(body: SharedFields, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """The checked sampling parameters; cross-field rules that a type cannot say are checked here."""
    n = body.n or 1
    temperature = 1.0 if body.temperature is None else body.temperature
    if n > 1 and temperature == 0.0:
        raise InvalidRequest("n must be 1 with temperature 0: every choice would be the same.", param="n")
    if body.min_tokens and max_tokens is not None and body.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens ({body.min_tokens}) is more than max_tokens ({max_tokens}).", param="min_tokens"
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is only for stream: true.", param="stream_options")
    sampling = Sampling(
        n=n,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=temperature,
        # vLLM takes no 0; this small a nucleus holds the likeliest token only, which is what 0 means.
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-6),
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        seed=body.seed,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        stop_token_ids=body.stop_token_ids or [],
        bad_words=body.bad_words or [],
        ignore_eos=bool(body.ignore_eos),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        spaces_between_special_tokens=body.spaces_between_special_tokens is not False,
        logprobs=logprobs,
        logit_bias=_logit_bias(body.logit_bias),
    )
    _constrain(sampling, body)
    return sampling


def priority_of(body: SharedFields) -> str | None:
    """The class that is asked for; vLLM's numbers (lower is sooner) fold into the three."""
    if body.priority is None or isinstance(body.priority, str):
        return body.priority
    return "high" if body.priority < 0 else "low" if body.priority > 0 else "normal"


def deadline_s_of(body: SharedFields) -> float | None:
    """The deadline that is asked for, in seconds."""
    return None if body.deadline_ms is None else body.deadline_ms / 1000


def tags_of(body: SharedFields) -> frozenset[str]:
    """``metadata`` as words: what experiments may filter by."""
    return frozenset(f"{name}={value}" for name, value in (body.metadata or {}).items())


def set_json_schema(sampling: Sampling, schema: Any, param: str) -> None:
    """Constrain the answer to a JSON schema, given as an object or as its JSON text."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest(f"{param} is not valid JSON: {error}", param=param) from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param} must be a JSON schema object.", param=param)
    refuse_deep(schema, param)
    sampling.json_schema = msgspec.json.encode(schema).decode()


def _logit_bias(bias: dict[str, float] | None) -> dict[str, float] | None:
    for token in bias or ():
        if not (token.isascii() and token.isdigit() and len(token) < 11):
            raise InvalidRequest(
                f"logit_bias: {token[:40]!r} is not a token id (a non-negative integer).", param="logit_bias"
            )
    return bias or None


def _constrain(sampling: Sampling, body: SharedFields) -> None:
    outputs = body.structured_outputs or StructuredOutputs()
    asked = {
        "structured_outputs.json": outputs.json,
        "structured_outputs.regex": outputs.regex,
        "structured_outputs.choice": outputs.choice,
        "structured_outputs.grammar": outputs.grammar,
        "structured_outputs.json_object": outputs.json_object,
        "guided_json": body.guided_json,
        "guided_regex": body.guided_regex,
        "guided_choice": body.guided_choice,
        "guided_grammar": body.guided_grammar,
    }
    given = [name for name, value in asked.items() if value]
    if len(given) > 1:
        raise InvalidRequest(f"Only one of {' and '.join(given)} can be given.", param=given[1])
    if asked["structured_outputs.json"] or asked["guided_json"]:
        set_json_schema(sampling, outputs.json or body.guided_json, given[0])
    sampling.json_object = bool(outputs.json_object)
    sampling.regex = outputs.regex or body.guided_regex
    sampling.choice = outputs.choice or body.guided_choice
    sampling.grammar = outputs.grammar or body.guided_grammar


def constraints(sampling: Sampling) -> int:
    """How many constraints on the answer's form are set."""
    wanted = (sampling.json_schema, sampling.json_object, sampling.regex, sampling.choice, sampling.grammar)
    return sum(1 for one in wanted if one)
