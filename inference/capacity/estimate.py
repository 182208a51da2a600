"""What a replica will take of its device, before it is loaded: by part, from the checkpoint's own facts.

KV cache a token and layer: keys and values of every KV head (GQA, Ainslie 2023); with multi-head latent
attention one compressed vector and the rotary key (MLA, DeepSeek-V2 2024). Layers with a sliding window keep no
more than the window. Layers with a recurrent state (Mamba, linear attention) keep a state a stream instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30

# What a CPU engine process has for itself beside weights and KV cache, after a full batch: 435-460 MiB with a
# vocabulary of 49,152 (SmolLM2), 1,310 MiB with 262,144 (Gemma 3), measured as USS; with a margin.
CPU_ENGINE_OVERHEAD_BYTES = 384 * 2**20
CPU_BYTES_A_VOCABULARY_ENTRY = 4096
# A CUDA context, cuBLAS workspaces and CUDA graphs of a small model.
GPU_ENGINE_OVERHEAD_BYTES = 2 * GIB

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


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part, on one device."""

    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    state_bytes: int = 0  # recurrent states of all streams

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes + self.state_bytes

    def parts(self) -> dict[str, int]:
        """By name, for people."""
        found = {
            "weights": self.weights_bytes,
            "kv_cache": self.kv_cache_bytes,
            "states": self.state_bytes,
            "overhead": self.overhead_bytes,
        }
        return {name: count for name, count in found.items() if count}


@dataclass(frozen=True, slots=True)
class KvCost:
    """Of one stream on all devices together: bytes a token, until a window is full, and a fixed state."""

    full_bytes: int  # a token, layers that attend to everything
    window_bytes: int  # a token, layers with a window
    window: int | None
    state_bytes: int = 0

    @property
    def token_bytes(self) -> int:
        """A token while no window is full."""
        return self.full_bytes + self.window_bytes

    def stream_bytes(self, tokens: int) -> int:
        """A stream of so many tokens."""
        windowed = tokens if self.window is None else min(tokens, self.window)
        return self.full_bytes * tokens + self.window_bytes * windowed + self.state_bytes


def kv_cost(facts: Mapping[str, Any], dtype_bytes: float = 2.0) -> KvCost | None:
    """What the cache costs, from facts; None where they do not tell."""
    layers = facts.get("layers")
    if not layers:
        return None
    recurrent = min(layers, facts.get("recurrent_layers") or 0)
    attending = layers - recurrent
    if facts.get("kv_lora_rank"):
        width = facts["kv_lora_rank"] + (facts.get("rope_head_size") or 0)
    elif facts.get("kv_heads") and facts.get("head_size"):
        width = 2 * facts["kv_heads"] * facts["head_size"]
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
    return KvCost(
        full_bytes=a_layer * (attending - windowed),
        window_bytes=a_layer * windowed,
        window=window if windowed else None,
        state_bytes=recurrent * int((facts.get("state_size") or 0) * dtype_bytes),
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
) -> MemoryEstimate:
    """One replica's share of one device: weights as stored or as the options make of them, cache, states, the rest."""
    weights = weight_bytes(facts, dtype, quantization)
    cost = kv_cost(facts)
    vocabulary = facts.get("vocabulary") or 0
    if device_kind == "cpu":
        overhead = CPU_ENGINE_OVERHEAD_BYTES + CPU_BYTES_A_VOCABULARY_ENTRY * vocabulary
    else:
        overhead = GPU_ENGINE_OVERHEAD_BYTES
    return MemoryEstimate(
        weights_bytes=-(-weights // tensor_parallel),
        kv_cache_bytes=kv_cache_bytes,
        overhead_bytes=overhead,
        state_bytes=-(-(cost.state_bytes if cost else 0) * max_streams // tensor_parallel),
    )


def weight_bytes(facts: Mapping[str, Any], dtype: str = "auto", quantization: str | None = None) -> int:
    """Bytes of the weights in memory: ``auto`` is as stored; quantized ones keep embeddings and head."""
    parameters, stored = facts.get("parameters") or 0, facts.get("weight_bytes") or 0
    if not parameters:
        return stored
    plain = parameters * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES else stored
    if quantization in QUANTIZED_BYTES:
        embedded = (facts.get("vocabulary") or 0) * (facts.get("hidden_size") or 0)
        embedded = min(parameters, embedded * (1 if facts.get("tied_embeddings") else 2))
        plain = (parameters - embedded) * QUANTIZED_BYTES[quantization] + embedded * plain / parameters
    return int(plain)


def gib(size_bytes: int) -> str:
    """``14.2 GiB``: how figures are said to people."""
    return f"{size_bytes / GIB:.1f} GiB"
