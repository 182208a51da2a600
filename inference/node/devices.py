"""The memory that this machine's engines may be placed in."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from inference.capacity.abilities import abilities
from inference.node.hostmemory import host_memory

DEFAULT_SHARE = 0.8
GPU_SHARE = 0.92


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """One device: ``cpu:0`` is host memory, ``gpu:N`` the N-th NVIDIA GPU."""

    name: str
    kind: str
    total_bytes: int
    budget_bytes: int
    compute_capability: tuple[int, int] = (0, 0)
    amx: bool = False
    index: int = 0  # NVML's, which is the PCI bus's order


def host_budget(memory_bytes: int = 0) -> int:
    """What engines may take of host memory (`memory_bytes`; 0: 80% of it)."""
    return memory_bytes or int(host_memory()[0] * DEFAULT_SHARE)


def local_devices(memory_bytes: int = 0) -> list[LocalDevice]:
    """GPUs through NVML if there are any, else host memory with its budget (`memory_bytes`; 0: 80% of it)."""
    gpus = _nvidia()
    if gpus:
        return gpus
    total, _ = host_memory()
    return [LocalDevice("cpu:0", "cpu", total, host_budget(memory_bytes), amx=_has_amx())]


def abilities_of(device: LocalDevice, all_of_node: Sequence[LocalDevice]) -> dict[str, Any]:
    """What engines on it can do; tensor parallel goes over the node's GPUs of one kind."""
    alike = Counter(one.kind for one in all_of_node)
    return abilities(
        device.kind,
        compute_capability=device.compute_capability,
        amx=device.amx,
        alike_on_node=alike[device.kind] if device.kind != "cpu" else 1,
    )


def _has_amx() -> bool:
    """Whether the processor has AMX tiles (x86, Sapphire Rapids or newer)."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _visible(count: int) -> list[int]:
    """GPUs that this node may use: those that its own CUDA_VISIBLE_DEVICES names by number, if it does."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not re.fullmatch(r"\d+(,\d+)*", named):
        return list(range(count))
    return sorted({int(one) for one in named.split(",") if int(one) < count})


def _nvidia() -> list[LocalDevice]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in _visible(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append(
                LocalDevice(
                    f"gpu:{index}",
                    pynvml.nvmlDeviceGetName(handle),
                    total,
                    int(total * GPU_SHARE),
                    tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                    index=index,
                )
            )
        return found
    finally:
        pynvml.nvmlShutdown()
