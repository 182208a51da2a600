"""Would the engine take these options? Asked of vLLM's own argument classes; nothing is loaded."""

from __future__ import annotations

import logging

import redis

from inference.engine.options import engine_arguments
from inference.protocol import CHECK_TTL_S, OptionsCheck

log = logging.getLogger(__name__)


def why_not(check: OptionsCheck) -> str:
    """Empty, or vLLM's refusal in one line."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    try:
        arguments = engine_arguments(check.model_path, check.options, on_cpu=current_platform.is_cpu())
        EngineArgs(**arguments).create_engine_config()
    except Exception as error:  # noqa: BLE001 - vLLM raises what it likes; all of it is a refusal
        return _in_a_line(error)
    return ""


def answer(check: OptionsCheck) -> None:
    """Check, and tell whoever asked."""
    found = why_not(check)
    client = redis.Redis.from_url(check.redis_url, socket_timeout=5)
    client.rpush(check.reply_to, found.encode(errors="replace"))
    client.expire(check.reply_to, CHECK_TTL_S)


def _in_a_line(error: Exception) -> str:
    """Pydantic says what is wrong between two lines of its own."""
    details = getattr(error, "errors", None)
    message = str(error)
    if callable(details):
        first = details()[0]
        place = first["loc"][0] if first["loc"] else ""
        message = str(first["msg"]).removeprefix("Value error, ")
        message = f"{place}: {message}" if place else message
    line = " ".join(message.split())
    return line[:1000] or type(error).__name__
