"""The engine's logprobs in the two forms that OpenAI has for them."""

from __future__ import annotations

from typing import Any


def chat_logprobs(entries: list[dict[str, Any] | None] | None) -> dict[str, Any] | None:
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
            if entry is not None
        ],
        "refusal": None,
    }


def completion_logprobs(
    entries: list[dict[str, Any] | None] | None, text: str, offset: int = 0
) -> dict[str, Any] | None:
    """``logprobs`` of a completion choice: parallel lists; ``offset`` is where the first token's text begins.

    The first token of an echoed prompt has no probability (its entry is None): its text is what ``text`` has
    before the others, its probability null.
    """
    if entries is None:
        return None
    others = sum(len(entry["token"]) for entry in entries if entry is not None)
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        token = text[: max(0, len(text) - others)] if entry is None else entry["token"]
        found["tokens"].append(token)
        found["token_logprobs"].append(None if entry is None else entry["logprob"])
        found["top_logprobs"].append(
            None
            if entry is None
            else {entry["token"]: entry["logprob"]} | {top["token"]: top["logprob"] for top in entry["top"]}
        )
        found["text_offset"].append(offset)
        offset += len(token)
    return found
