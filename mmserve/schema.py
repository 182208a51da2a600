"""What drf-spectacular cannot see of the API: access keys, error envelopes, and the hot path."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from drf_spectacular.extensions import OpenApiAuthenticationExtension

from inference.gateway.wire_chat import ChatBody
from inference.gateway.wire_completions import CompletionBody
from inference.gateway.wishes import headers_in_schema

REFERENCE = "#/components/schemas/{name}"
NULLABLE_TEXT = {"type": ["string", "null"]}
ERROR_ENVELOPE = {
    "type": "object",
    "description": "OpenAI's error envelope: always these four keys.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": NULLABLE_TEXT,
                "code": NULLABLE_TEXT,
            },
        }
    },
}
USAGE = {
    "type": ["object", "null"],
    "properties": {
        name: {"type": "integer", "minimum": 0}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
# Beside x-request-id and the rates. Money in dollars, as text: exact to the nano-dollar.
ANSWER_HEADERS = {
    name: {"description": words, "schema": {"type": "string"}}
    for name, words in {
        "x-mmserve-model": "The version that served it, as name@version.",
        "x-mmserve-revision": "The revision of the configuration that it was decided by.",
        "x-mmserve-decision": "Its id for GET /v1/routing/decisions/{id}; of refusals too.",
        "x-mmserve-cost-usd": "What it cost; only of a version with a price, and not of a stream.",
        "x-mmserve-cost-estimate-usd": (
            "Of a stream: the most that it can cost. The final cost is usage.cost_usd of the usage chunk, if asked for."
        ),
    }.items()
}
# What a request may say beside its body. Where both speak of the choice, they tighten each other.
REQUEST_HEADERS = [
    {"name": name, "in": "header", "required": False, **about}
    for name, about in {
        **headers_in_schema(),
        "x-mmserve-session": {
            "description": "The unit of experiments that go by session.",
            "schema": {"type": "string"},
        },
    }.items()
]
STATUS_HEADER = {
    "name": "x-mmserve-status",
    "in": "header",
    "required": False,
    "description": "`events`: a stream that waits for a model that is not up is told what it waits for.",
    "schema": {"type": "string"},
}
EXPLANATION = {
    "type": "object",
    "required": ["chosen", "chain", "candidates", "revision"],
    "properties": {
        "id": {"type": "string"},
        "model": NULLABLE_TEXT,
        "asked": {"type": "string"},
        "route": NULLABLE_TEXT,
        "policy": {"type": "string"},
        "chosen": NULLABLE_TEXT,
        "chain": {"type": "array", "items": {"type": "string"}},
        "candidates": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "eligible", "reasons", "scores"],
                "properties": {
                    "id": {"type": "string"},
                    "model": {"type": "string"},
                    "eligible": {"type": "boolean"},
                    "reasons": {"type": "array", "items": {"type": "string"}},
                    "scores": {"type": "object", "additionalProperties": {"type": "number"}},
                },
            },
        },
        "assignments": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"experiment": {"type": "string"}, "arm": {"type": "string"}},
            },
        },
        "replica": {
            "type": ["object", "null"],
            "description": "Which replica of the chosen deployment would get it for its cache; null without a choice.",
            "properties": {"preferred": NULLABLE_TEXT, "why": {"type": "string"}},
        },
        "problems": {"type": "array", "items": {"type": "string"}},
        "revision": {"type": "integer"},
    },
}
HEALTH = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
MODEL_ID = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "description": "name, name@version or name@alias; a '/' in it may be sent as %2F",
    "schema": {"type": "string"},
}


class AccessKeyScheme(OpenApiAuthenticationExtension):
    """How a request carries its access key."""

    target_class = "mmserve.keys.KeyAuthentication"
    name = "accessKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """OpenAPI's words for ``Authorization: Bearer <key>``."""
        return {"type": "http", "scheme": "bearer"}


def add_hot_path(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """drf-spectacular's postprocessing hook: what is mounted beside Django, and every operation's errors."""
    components = result.setdefault("components", {}).setdefault("schemas", {})
    _close_bodies(result["paths"], components)
    components.update(_wire_schemas())
    result["paths"].update(_hot_paths())
    for path in result["paths"].values():
        for operation in path.values():
            for status in ("4XX", "5XX"):
                operation["responses"].setdefault(status, _json("Refused, with the reason", "ErrorEnvelope"))
    return result


def _close_bodies(paths: dict[str, Any], components: dict[str, Any]) -> None:
    """Unknown fields are refused (registry.rest.StrictSerializer), and the schema says so."""
    for path in paths.values():
        for operation in path.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                name = body["schema"].get("$ref", "").rpartition("/")[2]
                if name in components:
                    components[name]["additionalProperties"] = False


def _wire_schemas() -> dict[str, Any]:
    _, found = msgspec.json.schema_components([CompletionBody, ChatBody], ref_template=REFERENCE)
    schemas: dict[str, Any] = dict(found)
    for name in ("CompletionBody", "ChatBody"):
        # The model stands in the path of predict, and in the body of the others.
        schemas[f"{name}WithoutModel"] = schemas[name]
        schemas[name] = copy.deepcopy(schemas[name])
        schemas[name]["required"] = ["model", *schemas[name].get("required", [])]
    schemas["Completion"] = _answer("text_completion")
    schemas["ChatCompletion"] = _answer("chat.completion")
    schemas["ErrorEnvelope"] = ERROR_ENVELOPE
    schemas["Explanation"] = EXPLANATION
    schemas["Health"] = HEALTH
    return schemas


def _answer(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": USAGE,
        },
    }


def _hot_paths() -> dict[str, Any]:
    return {
        "/v1/completions": _post(
            "create_completion", "Continue a text.", ["CompletionBody"], ["Completion"], True
        ),
        "/v1/chat/completions": _post(
            "create_chat_completion", "Answer a chat.", ["ChatBody"], ["ChatCompletion"], True
        ),
        "/v1/models/{model_id}/predict": _predict(),
        "/v1/routing/explain": _post(
            "explain",
            "Who would serve this body, and why; nothing is run.",
            ["CompletionBody", "ChatBody"],
            ["Explanation"],
        ),
        "/healthz": _get("healthz", "Whether the gateway lives.", {"200": _json("It does", "Health")}),
        "/readyz": _get(
            "readyz",
            "Whether the gateway can serve.",
            {"200": _json("It can", "Health"), "503": _json("It cannot, and why", "Health")},
        ),
    }


def _predict() -> dict[str, Any]:
    bodies = ["CompletionBodyWithoutModel", "ChatBodyWithoutModel"]
    answers = ["Completion", "ChatCompletion"]
    found = _post("predict", "Either body, the model in the path.", bodies, answers, True)
    found["post"]["parameters"].insert(0, MODEL_ID)
    return found


def _post(
    name: str, summary: str, bodies: list[str], answers: list[str], streams: bool = False
) -> dict[str, Any]:
    response = (
        _json("The answer; with `stream`, server-sent events", *answers)
        if streams
        else _json("Why", *answers)
    )
    if streams:
        response["headers"] = ANSWER_HEADERS
        response["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "tags": ["inference"],
            "security": [{AccessKeyScheme.name: []}],
            "parameters": [*REQUEST_HEADERS, *([STATUS_HEADER] if streams else [])],
            "requestBody": {"required": True, **_content(*bodies)},
            "responses": {"200": response},
        }
    }


def _get(name: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"operationId": name, "summary": summary, "tags": ["health"], "responses": responses}}


def _json(description: str, *schemas: str) -> dict[str, Any]:
    return {"description": description, **_content(*schemas)}


def _content(*schemas: str) -> dict[str, Any]:
    references = [{"$ref": REFERENCE.format(name=name)} for name in schemas]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"content": {"application/json": {"schema": schema}}}
