"""The OpenAPI schema: valid, whole, and without a key to read it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.management import call_command
from django.urls import get_resolver
from drf_spectacular.validation import validate_schema
from rest_framework.test import APIClient

HOT = {
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models/{model_id}/predict",
    "/v1/routing/explain",
    "/healthz",
    "/readyz",
}


@pytest.fixture
def schema(db: None) -> dict[str, Any]:
    response = APIClient().get("/v1/schema?format=json")
    assert response.status_code == 200
    return response.json()


def test_it_is_valid_openapi_3_1(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1")
    validate_schema(schema)


def test_generating_it_warns_of_nothing(tmp_path: Any) -> None:
    call_command("spectacular", "--fail-on-warn", "--file", str(tmp_path / "schema.yaml"))


def test_the_hot_path_is_in_it_with_the_wires_own_types(schema: dict[str, Any]) -> None:
    assert set(schema["paths"]) >= HOT
    body = schema["components"]["schemas"]["CompletionBody"]
    assert body["additionalProperties"] is False
    assert {"model", "prompt"} <= set(body["required"])
    assert "model" not in schema["components"]["schemas"]["CompletionBodyWithoutModel"]["required"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/routing/explain"])
def test_what_a_request_may_ask_of_the_choice_is_in_it_as_body_and_as_headers(
    schema: dict[str, Any], path: str
) -> None:
    wishes = schema["components"]["schemas"]["RoutingWishes"]
    names = ["max_cost_usd", "max_ttft_ms", "no_fallback", "prefer", "require"]
    assert sorted(wishes["properties"]) == names
    assert all(field["description"] for field in wishes["properties"].values())
    assert wishes["additionalProperties"] is False
    headers = {
        one["name"]: one for one in schema["paths"][path]["post"]["parameters"] if one["in"] == "header"
    }
    for name in names:
        header = headers[f"x-mmserve-{name.replace('_', '-')}"]
        assert header["description"]
        assert not header["required"]


def test_every_route_of_v1_is_in_it(schema: dict[str, Any]) -> None:
    def routes(resolver: Any, prefix: str) -> set[str]:
        found: set[str] = set()
        for pattern in resolver.url_patterns:
            path = prefix + str(pattern.pattern)
            found |= routes(pattern, path) if hasattr(pattern, "url_patterns") else {path}
        return found

    def plain(route: str) -> str:
        named = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", route)
        return "/" + re.sub(r"<\w+:(\w+)>", r"{\1}", named).replace("^", "").replace("$", "").replace(
            "{pk}", "{id}"
        )

    ours = {plain(route) for route in routes(get_resolver(), "") if route.startswith("v1/")} - {"/v1/schema"}

    assert ours <= set(schema["paths"])


def test_every_operation_says_what_an_error_looks_like(schema: dict[str, Any]) -> None:
    for path in schema["paths"].values():
        for operation in path.values():
            for status in ("4XX", "5XX"):
                content = operation["responses"][status]["content"]["application/json"]
                assert content["schema"]["$ref"].endswith("/ErrorEnvelope")


def test_no_answer_has_a_digest(schema: dict[str, Any]) -> None:
    assert "digest" not in str(schema["components"]["schemas"]["Key"])


def test_bodies_are_closed_and_answers_are_not(schema: dict[str, Any]) -> None:
    components = schema["components"]["schemas"]

    assert components["ModelRequest"]["additionalProperties"] is False
    assert "reason" in components["ModelRequest"]["properties"]
    assert "additionalProperties" not in components["Model"]
    assert "reason" not in components["Model"]["properties"]
