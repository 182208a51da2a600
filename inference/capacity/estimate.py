"""What a replica will take of each of its devices, before it is loaded: by part, from the checkpoint's own facts.

KV cache a token and layer: keys and values of every KV head (GQA, Ainslie 2023); with multi-head latent
attention one compressed vector and the rotary key (MLA, DeepSeek-V2 2024). Layers with a sliding window keep no
more than the window. Layers with a recurrent state (Mamba, linear attention) keep a state a stream instead, which
vLLM takes from the same pool.

Tensor parallel (Megatron-LM, Shoeybi 2019) shares heads, feed-forward and vocabulary. What cannot be shared is on
every device: MLA's latent vector, and a KV head where there are fewer heads than devices.

A draft model (speculative decoding, Leviathan 2023) is a second model in the same engine: it takes the target's dtype,
is never quantized on load, and keeps its layers' keys and values in the same cache (vLLM ``SpeculativeConfig``,
``DraftModelProposer``), so the same bytes hold fewer tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

MIB, GIB = 2**20, 2**30

# What a CPU engine process has for itself beside weights, KV cache and batches, measured as USS: 315 MiB with a
# vocabulary of 49,152 (SmolLM2), 607 MiB with 262,144 (Gemma 3), whose tokenizers make the difference.
CPU_RUNTIME_BYTES = 256 * MIB
CPU_BYTES_A_VOCABULARY_ENTRY = 1536
# vLLM's CPU kernels keep the head in a layout of their own, beside the weight that embeddings are looked up in; see
# engine/lean.py.
CPU_COPIES_OF_THE_VOCABULARY = 1
# On a GPU: the CUDA context with its kernels; cuBLAS workspaces and what torch's allocator leaves between blocks;
# NCCL's buffers where several devices share a replica.
CUDA_CONTEXT_BYTES = 512 * MIB
GPU_RUNTIME_BYTES = 512 * MIB
NCCL_BYTES = 512 * MIB
CUDA_GRAPH_BYTES_A_LAYER = 20 * MIB
# vLLM's own choice where a deployment makes none.
BATCHED_TOKENS = 2048
# Of its KV cache on a CPU; on GPUs 16.
BLOCK_TOKENS = 128
# float32 logits, and what sampling makes of them: sorted, as probabilities.
LOGITS_BYTES = 3 * 4
# The same of each token that is guessed: vLLM's rejection sampler copies it more often. Measured with SmolLM2 on a CPU
# and 16 streams: 69 (small draft) to 130 MB (ngram) more for 3 tokens, 149 to 194 MB for 7; this makes 94 and 220 MB.
GUESSED_LOGITS_BYTES = 10 * 4

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
# Bytes a weight when it is quantized on load, scales included; embeddings and the head stay as they are.
QUANTIZED_BYTES = {
    "fp8": 1.01,
    "fp8_per_tensor": 1.0,
    "fp8_per_channel": 1.01,
    "fp8_per_block": 1.02,
    "int8": 1.01,
    "int8_per_channel_weight_only": 1.01,
    "mxfp8": 1.04,
    "nvfp4_per_token": 0.57,
    "int4": 0.56,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes by part, on each of the replica's devices."""

    weights_bytes: int
    draft_weights_bytes: int = 0  # of the model that guesses
    kv_cache_bytes: int
    state_bytes: int = 0  # recurrent states of all streams
    activations_bytes: int = 0  # of the largest batch
    cuda_graphs_bytes: int = 0
    context_bytes: int = 0  # CUDA's
    runtime_bytes: int = 0
    calibrated: bool = False  # by what an earlier load of the same thing took

    @property
    def total_bytes(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """By name, for people; without what is not there."""
        named = {one.name.removesuffix("_bytes"): getattr(self, one.name) for one in fields(self)[:-1]}
        return {name: count for name, count in named.items() if count}


@dataclass(frozen=True, slots=True)
class KvCost:
    """Of one stream on each device: bytes a token, until a window is full, and a fixed state."""

    full_bytes: int  # a token, layers that attend to everything
    window_bytes: int  # a token, layers with a window
    window: int | None
    state_bytes: int = 0
    draft: KvCost | None = None  # of the model that guesses: beside its target's, in the same cache

    @property
    def states_bytes(self) -> int:
        """The fixed states of both models."""
        return self.state_bytes + (self.draft.states_bytes if self.draft else 0)

    @property
    def token_bytes(self) -> int:
        """A token while no window is full."""
        return self.full_bytes + self.window_bytes + (self.draft.token_bytes if self.draft else 0)

    def stream_bytes(self, tokens: int) -> int:
        """A stream of so many tokens."""
        windowed = tokens if self.window is None else min(tokens, self.window)
        own = self.full_bytes * tokens + self.window_bytes * windowed + self.state_bytes
        return own + (self.draft.stream_bytes(tokens) if self.draft else 0)

    def least_bytes(self, tokens: int) -> int:
        """The smallest cache with which vLLM starts: whole blocks for one stream, and the block that it keeps."""
        return self.stream_bytes((-(-tokens // BLOCK_TOKENS) + 1) * BLOCK_TOKENS)


def kv_cost(
    facts: Mapping[str, Any],
    dtype_bytes: float = 2.0,
    tensor_parallel: int = 1,
    *,
    draft: Mapping[str, Any] | None = None,
) -> KvCost | None:
    """What the cache costs, from facts (and those of a draft model); None where they do not tell."""
    if draft is not None:
        own, drafts = (kv_cost(one, dtype_bytes, tensor_parallel) for one in (facts, draft))
        return replace(own, draft=drafts) if own and drafts else None
    layers = facts.get("layers")
    if not layers:
        return None
    recurrent = min(layers, facts.get("recurrent_layers") or 0)
    attending = layers - recurrent
    if facts.get("kv_lora_rank"):
        width = facts["kv_lora_rank"] + (facts.get("rope_head_size") or 0)
    elif facts.get("kv_heads") and facts.get("head_size"):
        width = 2 * -(-facts["kv_heads"] // tensor_parallel) * facts["head_size"]
    elif attending == 0:
        width = 0
    else:
        return None
    a_layer = int(width * dtype_bytes)
    window = facts.get("sliding_window")
    windowed = 0
    if window:
        found = facts.get("window_layers")
        windowed = attending if found is None else min(attending, found)
    state = -(-(facts.get("state_size") or 0) // tensor_parallel)
    return KvCost(
        full_bytes=a_layer * (attending - windowed),
        window_bytes=a_layer * windowed,
        window=window if windowed else None,
        state_bytes=recurrent * int(state * dtype_bytes),
    )


def estimate(
    *,
    facts: Mapping[str, Any],
    dtype: str = "auto",
    kv_cache_bytes: int,
    device_kind: str = "cpu",
    quantization: str | None = None,
    tensor_parallel: int = 1,
    max_streams: int = 1,
    max_batched_tokens: int | None = None,
    draft: Mapping[str, Any] | None = None,
    speculative_tokens: int = 0,
) -> MemoryEstimate:
    """One replica's share of each device, of which ``kv_cache_bytes`` are its cache; ``draft``: its draft's facts.

    ``speculative_tokens``: how many are guessed at once, by whatever method.
    """
    on_cpu = device_kind == "cpu"
    cost = kv_cost(facts, kept_dtype_bytes(dtype), tensor_parallel, draft=draft)
    states = min(kv_cache_bytes, (cost.states_bytes if cost else 0) * max_streams)
    models = [facts] if draft is None else [facts, draft]
    tokens = max_batched_tokens or BATCHED_TOKENS
    if on_cpu:
        runtime = CPU_RUNTIME_BYTES + CPU_BYTES_A_VOCABULARY_ENTRY * (facts.get("vocabulary") or 0)
    else:
        runtime = GPU_RUNTIME_BYTES + (NCCL_BYTES if tensor_parallel > 1 else 0)
    layers = sum(one.get("layers") or 0 for one in models)
    drafts_dtype = "float32" if dtype == "float32" else "bfloat16"
    return MemoryEstimate(
        weights_bytes=_loaded_bytes(facts, dtype, quantization, tensor_parallel, on_cpu=on_cpu),
        draft_weights_bytes=_loaded_bytes(draft or {}, drafts_dtype, None, tensor_parallel, on_cpu=on_cpu),
        kv_cache_bytes=kv_cache_bytes - states,
        state_bytes=states,
        # One of them steps after the other.
        activations_bytes=max(
            activation_bytes(one, dtype, tokens, max_streams, tensor_parallel) for one in models
        )
        + speculative_tokens * max_streams * GUESSED_LOGITS_BYTES * (facts.get("vocabulary") or 0),
        cuda_graphs_bytes=0 if on_cpu else CUDA_GRAPH_BYTES_A_LAYER * layers,
        context_bytes=0 if on_cpu else CUDA_CONTEXT_BYTES,
        runtime_bytes=runtime,
    )


def _loaded_bytes(
    facts: Mapping[str, Any], dtype: str, quantization: str | None, tensor_parallel: int, *, on_cpu: bool
) -> int:
    """A model's weights with the copies that its kernels keep."""
    weights = weight_share(facts, dtype, quantization, tensor_parallel)
    if not on_cpu:
        return weights
    embedded = (facts.get("vocabulary") or 0) * (facts.get("hidden_size") or 0)
    return weights + int(CPU_COPIES_OF_THE_VOCABULARY * kept_dtype_bytes(dtype) * embedded)


def activation_bytes(
    facts: Mapping[str, Any], dtype: str, tokens: int, streams: int, tensor_parallel: int = 1
) -> int:
    """The peak of one step: what one layer holds of a full batch, and the logits of all streams.

    A layer holds the residual, its normed copy, attention's input and output, and of the feed-forward part its
    gate, its up projection and their product; one layer's are freed before the next.
    """
    hidden = facts.get("hidden_size") or 0
    head_size = facts.get("head_size") or 0
    heads = (facts.get("heads") or 0) + 2 * (facts.get("kv_heads") or 0)
    shared = heads * head_size + 3 * (facts.get("intermediate_size") or 4 * hidden)
    a_token = int(kept_dtype_bytes(dtype) * (4 * hidden + -(-shared // tensor_parallel)))
    return tokens * a_token + streams * LOGITS_BYTES * (facts.get("vocabulary") or 0)


def weight_share(
    facts: Mapping[str, Any], dtype: str = "auto", quantization: str | None = None, tensor_parallel: int = 1
) -> int:
    """Bytes of the weights on each device: a share, and what every device has whole."""
    whole = weight_bytes(facts, dtype, quantization)
    if tensor_parallel == 1:
        return whole
    parameters = facts.get("parameters") or 0
    a_weight = whole / parameters if parameters else 0.0
    replicated = 0
    hidden, layers = facts.get("hidden_size") or 0, facts.get("layers") or 0
    kv_heads, head_size = facts.get("kv_heads") or 0, facts.get("head_size") or 0
    if facts.get("kv_lora_rank"):
        replicated = layers * hidden * (facts["kv_lora_rank"] + (facts.get("rope_head_size") or 0))
    elif 0 < kv_heads < tensor_parallel:
        # Each device has one whole KV head: kv_heads / tensor_parallel of it would be its share.
        attending = layers - (facts.get("recurrent_layers") or 0)
        replicated = attending * 2 * hidden * head_size
        whole -= int(kv_heads * replicated * a_weight)
        return -(-whole // tensor_parallel) + int(replicated * a_weight)
    kept = int(replicated * a_weight)
    return -(-(whole - kept) // tensor_parallel) + kept


def weight_bytes(facts: Mapping[str, Any], dtype: str = "auto", quantization: str | None = None) -> int:
    """Bytes of the weights in memory: ``auto`` is as stored; quantized ones keep embeddings and head.

    What is stored quantized stays so, whatever the dtype; vLLM's ``auto`` makes 16 bits of float32.
    """
    parameters, stored = facts.get("parameters") or 0, facts.get("weight_bytes") or 0
    if not parameters or facts.get("quantization"):
        return stored
    if dtype == "auto" and facts.get("dtype") == "float32":
        dtype = "bfloat16"
    plain = parameters * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES else stored
    if quantization in QUANTIZED_BYTES:
        embedded = (facts.get("vocabulary") or 0) * (facts.get("hidden_size") or 0)
        embedded = min(parameters, embedded * (1 if facts.get("tied_embeddings") else 2))
        plain = (parameters - embedded) * QUANTIZED_BYTES[quantization] + embedded * plain / parameters
    return int(plain)


def kept_dtype_bytes(dtype: str) -> float:
    """Of activations, cache and whatever is not quantized."""
    return 4.0 if dtype == "float32" else 2.0


def gib(size_bytes: int) -> str:
    """``14.2 GiB``: how figures are said to people."""
    return f"{size_bytes / GIB:.1f} GiB"
