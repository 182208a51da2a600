"""One tree of errors.

    MmserveError                       500  server_error
    ├── InvalidRequest                 400  invalid_request_error
    │   ├── ContextLengthExceeded      400
    │   ├── NoChatTemplate             400
    │   └── PayloadTooLarge            413
    ├── AuthenticationFailed           401  authentication_error
    ├── PermissionDenied               403  permission_error
    ├── NotFound                       404  invalid_request_error
    │   └── ModelNotFound              404
    ├── MethodNotAllowed               405  invalid_request_error
    ├── Conflict                       409  invalid_request_error
    │   └── InsufficientMemory         409
    ├── PreconditionFailed             412  invalid_request_error
    ├── IdempotencyKeyReused           422  invalid_request_error
    ├── RateLimitExceeded              429  rate_limit_error
    │   ├── QueueFull                  429
    │   └── InsufficientQuota          429  insufficient_quota
    └── Unavailable                    503  server_error
        ├── ModelNotLoaded             503
        ├── EngineLost                 503
        ├── AllAttemptsFailed          503
        └── DeadlineExceeded           504

Every class knows its HTTP status, OpenAI's ``type`` and ``code``, and whether asking again can help.
An instance becomes OpenAI's error envelope with all four keys by :meth:`MmserveError.envelope`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MmserveError(Exception):
    """Something went wrong inside mmserve; the message says what."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = "internal_error"
    retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.error_code = code or self.code
        self.decision_id: str | None = None  # of the request that it refused, once there was one

    def envelope(self) -> dict[str, Any]:
        """OpenAI's error body: ``{"error": {"message", "type", "param", "code"}}``."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.error_code,
            }
        }

    def headers(self) -> list[tuple[str, str]]:
        """``retry-after`` (whole seconds, rounded up), ``retry-after-ms`` and ``x-should-retry``."""
        found = []
        if self.retry_after_s is not None:
            wait_ms = max(0, round(self.retry_after_s * 1000))
            found.append(("retry-after-ms", str(wait_ms)))
            found.append(("retry-after", str(-(-wait_ms // 1000))))
        found.append(("x-should-retry", "true" if self.retryable else "false"))
        return found


class InvalidRequest(MmserveError):
    """The request itself is wrong; ``param`` names the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    retryable = False


class ContextLengthExceeded(InvalidRequest):
    """The prompt and the tokens asked for do not fit the model's context; the message has both numbers."""

    code = "context_length_exceeded"


class NoChatTemplate(InvalidRequest):
    """The model cannot chat: its files bring no chat template."""

    code = "no_chat_template"


class PayloadTooLarge(InvalidRequest):
    """The body is larger than this server takes."""

    status = 413
    code = "payload_too_large"


class AuthenticationFailed(MmserveError):
    """The key is missing, unknown, expired or revoked."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    retryable = False


class PermissionDenied(MmserveError):
    """The key is good, but lacks the scope."""

    status = 403
    type = "permission_error"
    code = "insufficient_scope"
    retryable = False


class NotFound(MmserveError):
    """There is no such thing."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"
    retryable = False


class ModelNotFound(NotFound):
    """No model, version, alias or route has this id; the message offers near names."""

    code = "model_not_found"


class MethodNotAllowed(MmserveError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    retryable = False


class Conflict(MmserveError):
    """The thing is not in the state that this change needs, or somebody else changed it first."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"
    retryable = False


class InsufficientMemory(Conflict):
    """It would not fit; the message says what it needs and what is free."""

    code = "insufficient_memory"


class PreconditionFailed(MmserveError):
    """``If-Match`` names another state of the thing than the one that it is in."""

    status = 412
    type = "invalid_request_error"
    code = "precondition_failed"
    retryable = False


class IdempotencyKeyReused(MmserveError):
    """The same ``Idempotency-Key`` came with another request before."""

    status = 422
    type = "invalid_request_error"
    code = "idempotency_key_reused"
    retryable = False


class RateLimitExceeded(MmserveError):
    """The key's requests, tokens or concurrent requests are used up for now."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QueueFull(RateLimitExceeded):
    """The deployment's queue is at its bound; ``Retry-After`` is its measured time to drain."""

    code = "queue_full"


class InsufficientQuota(RateLimitExceeded):
    """A budget cannot pay for the request; the message names it, its limit, and when it begins anew."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    retryable = False
    is_used_up = False  # nothing is left of it, for whatever is asked


class Unavailable(MmserveError):
    """It cannot be done right now, through no fault of the request."""

    status = 503
    code = "unavailable"


class ServerStopping(Unavailable):
    """The server was told to stop: it takes nothing new, and what ran for longer than it waits was cut."""

    code = "server_stopping"


class ModelNotLoaded(Unavailable):
    """The model is known, but nothing serves it; the message says what would load it."""

    code = "model_not_loaded"
    retryable = False


class EngineLost(Unavailable):
    """The engine died and the answer cannot be continued exactly."""

    code = "engine_lost"


class AllAttemptsFailed(Unavailable):
    """Every choice that could serve the request was tried; the message says of each why it failed."""

    code = "all_attempts_failed"
    retryable = False


class DeadlineExceeded(Unavailable):
    """The request's deadline passed before it was answered."""

    status = 504
    code = "deadline_exceeded"
    retryable = False


BY_CODE: dict[str, type[MmserveError]] = {}


def _collect(root: type[MmserveError]) -> None:
    for child in root.__subclasses__():
        if child.code is not None:
            BY_CODE[child.code] = child
        _collect(child)


_collect(MmserveError)


def from_wire(payload: dict[str, Any]) -> MmserveError:
    """The error that an engine sent as ``{"code", "message", "param"}``."""
    kind = BY_CODE.get(payload.get("code", ""), MmserveError)
    return kind(payload.get("message", "unknown error"), param=payload.get("param"))
