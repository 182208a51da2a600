"""Errors of one request, as they travel: never with a prompt or an answer in them."""

from __future__ import annotations

import logging
import os
from typing import Any

from mmserve.errors import MmserveError

logger = logging.getLogger(__name__)


def logs_content() -> bool:
    """Whether the operator allows prompts and answers in logs."""
    return os.environ.get("MMSERVE_LOG_CONTENT") == "1"


def as_error(error: Exception) -> MmserveError:
    """An error for the client; of what was not meant for clients, the type only."""
    if isinstance(error, MmserveError):
        return error
    logger.error("a request failed with %s", type(error).__name__, exc_info=error if logs_content() else None)
    return MmserveError(f"the engine failed on this request ({type(error).__name__})")


def error_payload(error: MmserveError) -> dict[str, Any]:
    """The body of an ERROR event."""
    return {"code": error.error_code, "message": error.message, "param": error.param}


def describe(error: MmserveError) -> str:
    """What RQ's failed registry keeps: the kind of error and the parameter, not a message that may quote."""
    place = f" (param: {error.param})" if error.param else ""
    return f"{type(error).__name__}: {error.error_code}{place}"
