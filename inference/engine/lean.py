"""What vLLM does while it starts that an engine of ours does not need."""

from __future__ import annotations

from functools import partial
from typing import Any

import vllm.renderers.hf
from vllm.model_executor.layers import vocab_parallel_embedding as embeddings


def without_tokenizer_pool() -> None:
    """Keep vLLM from copying the tokenizer twice for threads.

    The copies took half of a load (SmolLM2 0.4 s of CPU, Gemma with its 33 MB tokenizer 6 s) and 300 MB. A fast
    tokenizer may be shared by threads as long as nobody sets truncation or padding, which nobody here does.
    """

    def itself(tokenizer: Any, copies: int = 1) -> Any:
        return tokenizer

    vllm.renderers.hf.maybe_make_thread_pool = itself


def without_unused_packing() -> None:
    """Keep vLLM's CPU build from packing an embedding as if it was multiplied with.

    It is only looked up; the head beside it, which is multiplied with, has the same weight and a packed copy of its
    own. The unused one was 54 MiB of SmolLM2 and 320 MiB of Gemma 3. Where a model has its embedding for a head, it is
    packed when that is first used.
    """
    method: Any = embeddings.UnquantizedEmbeddingMethod
    pack = method.process_weights_after_loading
    if hasattr(pack, "__wrapped__"):
        return

    def process(self: Any, layer: Any) -> None:
        if type(layer) is embeddings.VocabParallelEmbedding and embeddings.current_platform.is_cpu():
            # No closure: there is no packed copy that footprint.py could count.
            layer.cpu_linear = partial(_pack_and_multiply, partial(pack, self, layer), layer)
        else:
            pack(self, layer)

    process.__wrapped__ = pack  # type: ignore[attr-defined]
    method.process_weights_after_loading = process


def _pack_and_multiply(pack: Any, layer: Any, x: Any, weight: Any, bias: Any) -> Any:
    pack()
    return layer.cpu_linear(x, weight, bias)
