"""What vLLM does while it starts that an engine of ours does not need."""

from __future__ import annotations

from typing import Any

import vllm.renderers.hf


def without_tokenizer_pool() -> None:
    """Keep vLLM from copying the tokenizer twice for threads.

    The copies took half of a load (SmolLM2 0.4 s of CPU, Gemma with its 33 MB tokenizer 6 s) and 300 MB. A fast
    tokenizer may be shared by threads as long as nobody sets truncation or padding, which nobody here does.
    """

    def itself(tokenizer: Any, copies: int = 1) -> Any:
        return tokenizer

    vllm.renderers.hf.maybe_make_thread_pool = itself
