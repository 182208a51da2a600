"""What a replica will take of its device, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30

# What a CPU engine process has for itself beside weights and KV cache, after a full batch: 435-460 MiB with a
# vocabulary of 49,152 (SmolLM2), 1,310 MiB with 262,144 (Gemma 3), measured as USS; with a margin.
CPU_ENGINE_OVERHEAD_BYTES = 384 * 2**20
CPU_BYTES_A_VOCABULARY_ENTRY = 4096
# A CUDA context, cuBLAS workspaces and CUDA graphs of a small model.
GPU_ENGINE_OVERHEAD_BYTES = 2 * GIB

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part."""

    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes


def estimate(
    *,
    weight_bytes: int,
    parameters: int,
    dtype: str,
    kv_cache_bytes: int,
    device_kind: str,
    vocabulary: int = 0,
) -> MemoryEstimate:
    """Weights as stored, or as `dtype` makes of them ("auto": as stored), the KV cache as set, and the fixed rest."""
    weights = parameters * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES and parameters else weight_bytes
    if device_kind == "cpu":
        overhead = CPU_ENGINE_OVERHEAD_BYTES + CPU_BYTES_A_VOCABULARY_ENTRY * vocabulary
    else:
        overhead = GPU_ENGINE_OVERHEAD_BYTES
    return MemoryEstimate(weights_bytes=weights, kv_cache_bytes=kv_cache_bytes, overhead_bytes=overhead)


def gib(size_bytes: int) -> str:
    """``14.2 GiB``: how figures are said to people."""
    return f"{size_bytes / GIB:.1f} GiB"
