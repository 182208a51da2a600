"""What a device can do of what an operator may ask of an engine. Pure.

Sources: vLLM 0.32's ``--quantization`` shorthands for online quantization and its feature matrix by compute
capability; on CPUs with and without AMX each was tried: per block needs its tiles, per tensor and mxfp8 do not load.

Of vLLM's methods of speculation (``SpeculativeConfig``) those are offered that were run: ``ngram`` and
``draft_model``. Not ``ngram_gpu``, which needs CUDA and was run by nobody here, nor ``suffix``, which needs the package
arctic-inference; ``eagle``, ``mtp``, ``medusa`` and their like guess with layers that were trained for one model, and
whose checkpoints are no versions that could be served themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.capacity.ladder import LADDER, REMOTE, SERVING, STOPPED

# By the least CUDA compute capability that has kernels for it.
GPU_QUANTIZATION = {
    "int8_per_channel_weight_only": (8, 0),
    "fp8_per_tensor": (8, 9),
    "fp8_per_channel": (8, 9),
    "fp8_per_block": (9, 0),
    "mxfp8": (10, 0),
    "nvfp4_per_token": (10, 0),
}
CPU_QUANTIZATION = ("int8_per_channel_weight_only", "fp8_per_channel")
AMX_QUANTIZATION = ("fp8_per_block",)
QUANTIZATIONS = tuple(GPU_QUANTIZATION)
NGRAM, DRAFT_MODEL = "ngram", "draft_model"
SPECULATIONS = (NGRAM, DRAFT_MODEL)
# vLLM's sleep mode is for GPUs only.
CPU_LADDER = (SERVING, STOPPED, REMOTE)
LIMITED = ("quantization", "speculation", "tensor_parallel")


def abilities(
    kind: str,
    *,
    compute_capability: tuple[int, int] = (0, 0),
    amx: bool = False,
    alike_on_node: int = 1,
) -> dict[str, Any]:
    """By option: the values that it can do, or the most."""
    on_cpu = kind == "cpu"
    kernels = [name for name, least in GPU_QUANTIZATION.items() if compute_capability >= least]
    return {
        "quantization": [*CPU_QUANTIZATION, *(AMX_QUANTIZATION if amx else ())] if on_cpu else kernels,
        "speculation": list(SPECULATIONS),
        "tensor_parallel": alike_on_node,
        "ladder": list(CPU_LADDER if on_cpu else LADDER),
    }


def what_it_can(abilities: Mapping[str, Any], field: str, value: Any) -> str | None:
    """None where the device can do it, else what it can instead."""
    can = abilities.get(field)
    if can is None or not value:
        return None
    if isinstance(can, int):
        return None if value <= can else f"at most {can}"
    return None if value in can else ", ".join(can) or "none"
