"""Every error under /v1 as OpenAI's envelope."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpResponse, JsonResponse
from rest_framework import exceptions
from rest_framework.response import Response

from mmserve.errors import (
    AuthenticationFailed,
    Conflict,
    IdempotencyKeyReused,
    InvalidRequest,
    MethodNotAllowed,
    MmserveError,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    PreconditionFailed,
    RateLimitExceeded,
    Unavailable,
)

BY_STATUS: dict[int, type[MmserveError]] = {
    400: InvalidRequest,
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    412: PreconditionFailed,
    413: PayloadTooLarge,
    422: IdempotencyKeyReused,
    429: RateLimitExceeded,
    503: Unavailable,
}


def of_status(status: int, message: str, param: str | None = None) -> MmserveError:
    """The error of the tree that stands for an HTTP status."""
    kind = BY_STATUS.get(status, InvalidRequest if status < 500 else MmserveError)
    return kind(message, param=param)


def first_problem(detail: Any, path: str = "") -> tuple[str | None, str]:
    """The field (dotted) and the message of the first problem in a serializer's nested errors."""
    if isinstance(detail, dict) and detail:
        name, inner = next(iter(detail.items()))
        if name == "non_field_errors":
            return first_problem(inner, path)
        if isinstance(name, int):
            return first_problem(inner, f"{path}[{name}]")
        return first_problem(inner, f"{path}.{name}" if path else str(name))
    if isinstance(detail, list) and detail:
        for index, inner in enumerate(detail):
            if isinstance(inner, dict) and inner:
                return first_problem(inner, f"{path}[{index}]")
        return first_problem(detail[0], path)
    return path or None, str(detail)


def translate(exc: Exception) -> tuple[int, MmserveError] | None:
    """HTTP status and error for what a view raised; None for what nobody expected."""
    if isinstance(exc, MmserveError):
        return exc.status, exc
    if isinstance(exc, exceptions.ValidationError):
        param, message = first_problem(exc.detail)
        return 400, InvalidRequest(f"{param}: {message}" if param else message, param=param)
    if isinstance(exc, exceptions.APIException):
        return exc.status_code, of_status(exc.status_code, str(exc.detail))
    if isinstance(exc, Http404):
        return 404, NotFound(str(exc) or "There is no such thing.")
    if isinstance(exc, DjangoPermissionDenied):
        return 403, PermissionDenied(str(exc) or "This is not allowed.")
    if isinstance(exc, DjangoValidationError):
        return 400, InvalidRequest(" ".join(exc.messages))
    if isinstance(exc, (OperationalError, InterfaceError)):
        return 503, Unavailable("The database does not answer.", retry_after_s=1)
    return None


def handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's EXCEPTION_HANDLER."""
    found = translate(exc)
    if found is None:
        return None
    status, error = found
    response = Response(error.envelope(), status=status, headers=dict(error.headers()))
    if header := getattr(exc, "auth_header", None):
        response["WWW-Authenticate"] = header
    elif status == 401:
        response["WWW-Authenticate"] = "Bearer"
    return response


def envelope_response(status: int, message: str) -> HttpResponse:
    """The envelope for what Django itself refused, in place of its HTML page."""
    error = of_status(status, message)
    return JsonResponse(error.envelope(), status=status, headers=dict(error.headers()))
