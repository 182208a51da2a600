"""The engine's logprobs in the two forms that OpenAI has for them."""

from __future__ import annotations

from typing import Any


def chat_logprobs(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """``logprobs`` of a chat choice: one object a token."""
    if entries is None:
        return None
    return {
        "content": [
            {
                "token": entry["token"],
                "logprob": entry["logprob"],
                "bytes": entry["bytes"],
                "top_logprobs": [
                    {"token": top["token"], "logprob": top["logprob"], "bytes": top["bytes"]}
                    for top in entry["top"]
                ],
            }
            for entry in entries
        ],
        "refusal": None,
    }


def completion_logprobs(entries: list[dict[str, Any]] | None, offset: int = 0) -> dict[str, Any] | None:
    """``logprobs`` of a completion choice: parallel lists; ``offset`` is where the first token's text begins.

    The first token of an echoed prompt has no probability: null, and null for its alternatives.
    """
    if entries is None:
        return None
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            None
            if entry["logprob"] is None
            else {entry["token"]: entry["logprob"], **{top["token"]: top["logprob"] for top in entry["top"]}}
            for entry in entries
        ],
        "text_offset": offsets,
    }
