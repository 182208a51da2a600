"""Every exception that a view may raise has one envelope."""

from __future__ import annotations

import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import OperationalError
from django.http import Http404
from rest_framework import exceptions

from mmserve.api_errors import first_problem, handler, translate
from mmserve.errors import Conflict


@pytest.mark.parametrize(
    ("raised", "status", "kind", "code"),
    [
        (Conflict("taken"), 409, "invalid_request_error", "conflict"),
        (exceptions.ParseError(), 400, "invalid_request_error", "invalid_value"),
        (exceptions.NotAuthenticated(), 401, "authentication_error", "invalid_api_key"),
        (exceptions.PermissionDenied(), 403, "permission_error", "insufficient_scope"),
        (exceptions.NotFound(), 404, "invalid_request_error", "not_found"),
        (exceptions.MethodNotAllowed("PUT"), 405, "invalid_request_error", "method_not_allowed"),
        (exceptions.UnsupportedMediaType("text/xml"), 415, "invalid_request_error", "invalid_value"),
        (exceptions.Throttled(), 429, "rate_limit_error", "rate_limit_exceeded"),
        (Http404("none"), 404, "invalid_request_error", "not_found"),
        (PermissionDenied(), 403, "permission_error", "insufficient_scope"),
        (ValidationError("no"), 400, "invalid_request_error", "invalid_value"),
        (OperationalError("gone"), 503, "server_error", "unavailable"),
    ],
)
def test_what_a_view_raises_becomes_an_envelope(raised: Exception, status: int, kind: str, code: str) -> None:
    response = handler(raised, {})

    assert response is not None
    assert response.status_code == status
    error = response.data["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (kind, code)
    assert error["message"]


def test_an_unknown_exception_is_left_to_the_log() -> None:
    assert translate(RuntimeError("bug")) is None
    assert handler(RuntimeError("bug"), {}) is None


def test_a_401_says_how_to_authenticate() -> None:
    response = handler(exceptions.NotAuthenticated(), {})

    assert response is not None
    assert response["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("detail", "param", "message"),
    [
        ({"name": ["too long"]}, "name", "too long"),
        ({"options": {"dtype": ["unknown"]}}, "options.dtype", "unknown"),
        ({"scopes": [{}, {"name": ["wrong"]}]}, "scopes[1].name", "wrong"),
        ({"non_field_errors": ["both"]}, None, "both"),
        (["plain"], None, "plain"),
    ],
)
def test_the_first_problem_is_named_by_its_path(detail: object, param: str | None, message: str) -> None:
    assert first_problem(detail) == (param, message)
