"""The whole answer of a request that does not stream."""

from __future__ import annotations

from typing import Any

from inference.gateway.chunks import encode, usage_of
from inference.gateway.flight import Event, Flight
from inference.gateway.logprobs import chat_logprobs, completion_logprobs
from inference.gateway.plan import Plan


class Answer:
    """Gathers the deltas of each choice."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.clear()

    def clear(self) -> None:
        """Begin again: another engine makes the whole answer anew."""
        choices = range(self._plan.choices)
        self._texts: list[list[str]] = [[] for _ in choices]
        self._logprobs: list[list[dict[str, Any] | None]] = [[] for _ in choices]
        self._finish_reasons: list[str | None] = [None for _ in choices]

    def delta(self, event: Event) -> None:
        """One DELTA event."""
        index = event[3]
        self._texts[index].append(event[4])
        if event[6]:
            self._logprobs[index].extend(event[6])
        if event[7] is not None:
            self._finish_reasons[index] = event[7]

    def body(self, answer_id: str, created: int, flight: Flight) -> bytes:
        """The JSON body."""
        chat = self._plan.endpoint == "chat.completions"
        return encode(
            {
                "id": answer_id,
                "object": "chat.completion" if chat else "text_completion",
                "created": created,
                "model": self._plan.model,
                "choices": [
                    self._chat_choice(index) if chat else self._completion_choice(index)
                    for index in range(self._plan.choices)
                ],
                "usage": usage_of(flight.prompt_tokens, flight.completion_tokens, flight.cached_tokens),
            }
        )

    def _chat_choice(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(self._texts[index]), "refusal": None},
            "logprobs": chat_logprobs(self._logprobs[index]) if self._plan.want_logprobs else None,
            "finish_reason": self._finish_reasons[index] or "stop",
        }

    def _completion_choice(self, index: int) -> dict[str, Any]:
        text = "".join(self._texts[index])
        return {
            "index": index,
            "text": text,
            "logprobs": completion_logprobs(self._logprobs[index], text)
            if self._plan.want_logprobs
            else None,
            "finish_reason": self._finish_reasons[index] or "stop",
        }
