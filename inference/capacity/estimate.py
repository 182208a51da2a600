"""What a replica will take of its device, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30

# Resident memory of a CPU engine process beside weights and KV cache: interpreter, torch, vLLM, tokenizer and
# activations of a small batch, less what it shares with the template process it was forked from.
CPU_ENGINE_OVERHEAD_BYTES = 1_300 * 2**20
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
    *, weight_bytes: int, parameters: int, dtype: str, kv_cache_bytes: int, device_kind: str
) -> MemoryEstimate:
    """Weights as stored, or as `dtype` makes of them ("auto": as stored), the KV cache as set, and the fixed rest."""
    weights = parameters * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES and parameters else weight_bytes
    overhead = CPU_ENGINE_OVERHEAD_BYTES if device_kind == "cpu" else GPU_ENGINE_OVERHEAD_BYTES
    return MemoryEstimate(weights_bytes=weights, kv_cache_bytes=kv_cache_bytes, overhead_bytes=overhead)


def gib(size_bytes: int) -> str:
    """``14.2 GiB``: how figures are said to people."""
    return f"{size_bytes / GIB:.1f} GiB"
