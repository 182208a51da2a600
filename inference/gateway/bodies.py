"""From the bytes of a body to a Plan."""

from __future__ import annotations

import msgspec

from inference.gateway import strict_json, wire_chat, wire_completions
from inference.gateway.plan import Endpoint, Plan
from mmserve.errors import InvalidRequest


class _Shape(msgspec.Struct):
    """Just enough of a body to tell the two shapes apart."""

    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_shape = msgspec.json.Decoder(_Shape)


def parse(body: bytes, endpoint: Endpoint, model: str | None = None) -> Plan:
    """The plan of a body for one endpoint; ``model`` is the one in the path, where there is one."""
    if endpoint == "completions":
        completion = strict_json.decode(body, wire_completions.decoder)
        return wire_completions.plan_completion(completion, _model(completion.model, model))
    chat = strict_json.decode(body, wire_chat.decoder)
    return wire_chat.plan_chat(chat, _model(chat.model, model))


def parse_either(body: bytes, model: str | None = None) -> Plan:
    """The plan of a body of either shape: ``messages`` makes it a chat."""
    shape = strict_json.decode(body, _shape)
    if shape.messages is not msgspec.UNSET and shape.prompt is not msgspec.UNSET:
        raise InvalidRequest("Give either prompt or messages, not both.", param="prompt")
    if shape.messages is msgspec.UNSET and shape.prompt is msgspec.UNSET:
        raise InvalidRequest(
            "Missing required parameter: prompt (or messages)", param="prompt", code="missing_parameter"
        )
    return parse(body, "completions" if shape.messages is msgspec.UNSET else "chat.completions", model)


def _model(given: str | msgspec.UnsetType, in_path: str | None) -> str:
    if given is msgspec.UNSET:
        if in_path is None:
            raise InvalidRequest("Missing required parameter: model", param="model", code="missing_parameter")
        return in_path
    if in_path is not None and given != in_path:
        raise InvalidRequest(f"model is {given!r} in the body and {in_path!r} in the path.", param="model")
    return given
