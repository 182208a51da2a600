"""A client that reads one stream in the background."""

from __future__ import annotations

import threading
from typing import Any

import httpx

from tests.e2e.platform import Platform, sse

# SmolLM2 in float32 as ``smol``: its greedy text does not depend on who else is in the batch.
GREEDY = {
    "model": "smol",
    "prompt": "Once upon a time, in a village by the sea, there lived",
    "temperature": 0,
    "max_tokens": 120,
    "ignore_eos": True,
}


class Reader(threading.Thread):
    """Reads one stream in the background; `text` is what has come, `error` what went wrong."""

    def __init__(self, platform: Platform, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.platform = platform
        self.body = body
        self.text = ""
        self.chunks = 0
        self.finish: str | None = None
        self.error: Any = None
        self.start()

    def run(self) -> None:
        try:
            with self.platform.stream(self.body) as answer:
                if answer.status_code != 200:
                    self.error = answer.read()
                    return
                for event in sse(answer.iter_lines()):
                    if event == "[DONE]":
                        return
                    if "error" in event:
                        self.error = event["error"]
                        continue
                    for choice in event["choices"]:
                        self.text += choice["text"]
                        self.finish = choice["finish_reason"] or self.finish
                    self.chunks += 1
        except httpx.HTTPError as error:
            self.error = error

    def finished(self, timeout_s: float = 120) -> Reader:
        self.join(timeout_s)
        assert not self.is_alive(), f"the stream hangs after {self.chunks} chunks"
        return self
