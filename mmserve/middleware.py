"""What every answer under /v1 has: an error envelope in place of HTML, and the headers of the contract."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from mmserve.api_errors import envelope_response
from registry import revision

# Also with a slash too many, as of a base URL that ends with one: whoever asks there reads JSON.
UNDER_V1 = re.compile(r"/+v1(?:/|$)")
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MESSAGES = {
    400: "The request is malformed, or its Host header is not one of this server's (MMSERVE_ALLOWED_HOSTS).",
    403: "This is not allowed.",
    404: "There is nothing at {path}.",
    405: "{method} is not possible at {path}.",
    413: "The request's body is too large.",
    500: "Something went wrong inside the server; its log has the request {request_id}.",
}


class ApiErrors:
    """Wraps Django's own error pages, which are HTML, for paths under /v1."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not UNDER_V1.match(request.path):
            return self.get_response(request)
        request_id = request.headers.get("X-Request-ID", "")
        if not SANE_REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
            request.META["HTTP_X_REQUEST_ID"] = request_id
        response = self.get_response(request)
        if response.status_code >= 400 and not response.get("Content-Type", "").startswith(
            "application/json"
        ):
            message = MESSAGES.get(response.status_code, response.reason_phrase)
            response = envelope_response(
                response.status_code,
                message.format(path=request.path, method=request.method, request_id=request_id),
            )
        response["x-request-id"] = request_id
        self._say_revision(response)
        return response

    @staticmethod
    def _say_revision(response: HttpResponseBase) -> None:
        try:
            response["x-mmserve-revision"] = str(revision.current())
        except DatabaseError:
            # The answer itself already says that the database is gone.
            response["x-mmserve-revision"] = "unknown"
