"""One streamed completion, asked for again until it is answered: how a user waits for a model that loads."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from urllib.parse import urlsplit

from tests.bench.load import Target
from tests.bench.processes import START_DEADLINE_S, ServerFailed

_RETRY_S = 0.02


def first_token_at(target: Target, server: subprocess.Popen[bytes]) -> float:
    """The clock (``perf_counter``) at the first token; ServerFailed if the server ends or is too late."""
    give_up = time.perf_counter() + START_DEADLINE_S
    while True:
        found = _try(target)
        if isinstance(found, float):
            return found
        if time.perf_counter() > give_up:
            raise ServerFailed(
                f"{target.url} gave no token of {target.model} in time; its last answer: {found}"
            )
        if server.poll() is not None:
            raise ServerFailed(f"{target.url} ended with {server.returncode}; its last answer: {found}")
        time.sleep(_RETRY_S)


def _try(target: Target) -> float | str:
    """The time of the first token, or why there was none."""
    connection = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=START_DEADLINE_S)
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": "Say something."}],
        "stream": True,
        "max_tokens": 4,
    }
    headers = {"Authorization": f"Bearer {target.api_key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            return response.read(500).decode(errors="replace")
        for line in response:
            if _has_text(line):
                return time.perf_counter()
        return "a stream without text"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


def _has_text(line: bytes) -> bool:
    if not line.startswith(b"data: {"):
        return False
    choices = json.loads(line[6:]).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))
