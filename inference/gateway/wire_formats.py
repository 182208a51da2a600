"""OpenAI's ``response_format``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inference.gateway.wire import constraints, set_json_schema
from inference.protocol import Sampling
from mmserve.errors import InvalidRequest


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``response_format.json_schema``."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``response_format``: text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def apply_response_format(sampling: Sampling, wanted: ResponseFormat | None) -> None:
    """Set the constraint that the format asks for."""
    if wanted is None or wanted.type == "text":
        return
    if constraints(sampling):
        raise InvalidRequest(
            "response_format and structured outputs cannot both be given.", param="response_format"
        )
    if wanted.type == "json_object":
        sampling.json_object = True
        return
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest(
            "Missing required parameter: response_format.json_schema.schema",
            param="response_format.json_schema.schema",
            code="missing_parameter",
        )
    set_json_schema(sampling, wanted.json_schema.schema, "response_format.json_schema.schema")
