"""The memory that this machine's engines may be placed in."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import pynvml

DEFAULT_SHARE = 0.8
GPU_SHARE = 0.92


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """One device: ``cpu:0`` is host memory, ``gpu:N`` the N-th NVIDIA GPU."""

    name: str
    kind: str
    total_bytes: int
    budget_bytes: int


def local_devices(memory_bytes: int = 0) -> list[LocalDevice]:
    """GPUs through NVML if there are any, else host memory with its budget (`memory_bytes`; 0: 80% of it)."""
    gpus = _nvidia()
    if gpus:
        return gpus
    total = psutil.virtual_memory().total
    return [LocalDevice("cpu:0", "cpu", total, memory_bytes or int(total * DEFAULT_SHARE))]


def _nvidia() -> list[LocalDevice]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append(
                LocalDevice(f"gpu:{index}", pynvml.nvmlDeviceGetName(handle), total, int(total * GPU_SHARE))
            )
        return found
    finally:
        pynvml.nvmlShutdown()
