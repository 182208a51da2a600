"""OpenAI chunk objects as bytes. The common chunk is one concatenation: prefix, encoded text, suffix."""

from __future__ import annotations

from typing import Any

import msgspec

from inference.gateway.flight import Event
from inference.gateway.logprobs import chat_logprobs, completion_logprobs
from inference.gateway.plan import Plan

encode = msgspec.json.Encoder().encode


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class Chunks:
    """Chunks of one stream; ``before`` and ``after`` frame each: SSE's ``data: …``, or a WebSocket frame."""

    __slots__ = (
        "_after",
        "_before",
        "_chat",
        "_head",
        "_offsets",
        "_opened",
        "_prefixes",
        "_status",
        "_suffix",
        "_usage_null",
    )

    def __init__(
        self,
        plan: Plan,
        answer_id: str,
        created: int,
        *,
        before: bytes = b"data: ",
        after: bytes = b"\n\n",
        status: bytes = b"event: status\ndata: ",
    ) -> None:
        self._status = status
        self._chat = plan.endpoint == "chat.completions"
        kind = b"chat.completion.chunk" if self._chat else b"text_completion"
        self._before = before
        self._after = after
        self._head = b'{"id":%s,"object":"%s","created":%d,"model":%s,' % (
            encode(answer_id),
            kind,
            created,
            encode(plan.model),
        )
        self._usage_null = b',"usage":null' if plan.include_usage else b""
        self._suffix = (
            (
                b'},"logprobs":null,"finish_reason":null}]'
                if self._chat
                else b',"logprobs":null,"finish_reason":null}]'
            )
            + self._usage_null
            + b"}"
            + after
        )
        self._prefixes: dict[int, bytes] = {}
        self._offsets: dict[int, int] = {}
        self._opened = False

    def opening(self, choices: int) -> list[bytes]:
        """The role of each choice, once, for chat."""
        if self._opened or not self._chat:
            return []
        self._opened = True
        return [
            self._chunk(
                b'"choices":[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
                % index
            )
            for index in range(choices)
        ]

    def delta(self, event: Event) -> list[bytes]:
        """The chunks of one DELTA event: none for a token that has no text yet."""
        index, text, logprobs, finish_reason = event[3], event[4], event[6], event[7]
        if logprobs is None and finish_reason is None:
            if not text:
                return []
            prefix = self._prefixes.get(index)
            if prefix is None:
                prefix = self._prefixes[index] = self._before + self._head + self._opening_of(index)
            return [prefix + encode(text) + self._suffix]
        if self._chat:
            return self._chat_delta(index, text, logprobs, finish_reason)
        return [self._completion_delta(index, text, logprobs, finish_reason)]

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk with no choices and the usage."""
        return self._before + self._head + b'"choices":[],"usage":' + encode(usage) + b"}" + self._after

    def status(self, told: dict[str, Any]) -> bytes:
        """What the request waits for: no chunk of the answer, so an event of its own name."""
        return self._status + encode(told) + self._after

    def _opening_of(self, index: int) -> bytes:
        if self._chat:
            return b'"choices":[{"index":%d,"delta":{"content":' % index
        return b'"choices":[{"index":%d,"text":' % index

    def _chunk(self, choices: bytes) -> bytes:
        return self._before + self._head + choices + self._usage_null + b"}" + self._after

    def _chat_delta(self, index: int, text: str, logprobs: Any, finish_reason: str | None) -> list[bytes]:
        chunks = []
        if text or logprobs:
            chunks.append(
                self._chunk(
                    b'"choices":[{"index":%d,"delta":{"content":%s},"logprobs":%s,"finish_reason":null}]'
                    % (index, encode(text), encode(chat_logprobs(logprobs)))
                )
            )
        if finish_reason is not None:
            chunks.append(
                self._chunk(
                    b'"choices":[{"index":%d,"delta":{},"logprobs":null,"finish_reason":%s}]'
                    % (index, encode(finish_reason))
                )
            )
        return chunks

    def _completion_delta(self, index: int, text: str, logprobs: Any, finish_reason: str | None) -> bytes:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        found = completion_logprobs(logprobs, text, offset)
        return self._chunk(
            b'"choices":[{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s}]'
            % (index, encode(text), encode(found), encode(finish_reason))
        )
