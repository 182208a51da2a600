"""vLLM's log probabilities as the wire's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

# JSON has no infinity; OpenAI says -9999.0 for "practically never".
LEAST = -9999.0


class _Logprob(Protocol):
    logprob: float
    rank: int | None
    decoded_token: str | None


def entries(
    token_ids: Sequence[int], positions: Sequence[Mapping[int, _Logprob] | None], top: int
) -> list[dict[str, Any] | None]:
    """One entry a token; None where nothing was computed (the first token of a prompt)."""
    return [
        None if found is None else _entry(token_id, found, top)
        for token_id, found in zip(token_ids, positions, strict=True)
    ]


def _entry(token_id: int, found: Mapping[int, _Logprob], top: int) -> dict[str, Any]:
    best = sorted(found.values(), key=lambda logprob: logprob.rank or 0)[:top]
    return {**_token(found[token_id]), "top": [_token(logprob) for logprob in best]}


def _token(logprob: _Logprob) -> dict[str, Any]:
    text = logprob.decoded_token or ""
    return {
        "token": text,
        "logprob": max(LEAST, logprob.logprob),
        "bytes": list(text.encode("utf-8", errors="replace")),
    }
