"""What is taken of this machine's memory now, by its engines and by others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
import pynvml

from inference.engine.privatepages import private_bytes
from inference.node.devices import LocalDevice
from inference.node.hostmemory import host_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnEngine:
    """An engine of this node: its pid, the devices that it has, and what it was measured to take of each."""

    pid: int
    devices: frozenset[str]
    bytes: int | None = None  # None while it loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of one device. Others' bytes are those that engines cannot have, though the budget promises them."""

    used_bytes: int
    used_by_others_bytes: int
    # By pid: ours, and on GPUs others' as far as NVML tells.
    processes: Mapping[int, int] = field(default_factory=dict)


def usage(devices: Sequence[LocalDevice], engines: Sequence[OwnEngine]) -> dict[str, Usage]:
    """By device; a GPU that NVML cannot read any more is left out."""
    found = {}
    on_gpus = [device for device in devices if device.kind != "cpu"]
    for device in devices:
        if device.kind == "cpu":
            found[device.name] = host_usage(device, [one for one in engines if device.name in one.devices])
    if on_gpus:
        found.update(_gpu_usage(on_gpus, engines))
    return found


def host_usage(device: LocalDevice, engines: Sequence[OwnEngine]) -> Usage:
    """The budget stands, unless less memory is left than it still promises."""
    total, available = host_memory()
    own = {one.pid: _of_process(one) for one in engines}
    promised = max(0, device.budget_bytes - sum(own.values()))
    others = max(0, promised - available)
    return Usage(used_bytes=total - available, used_by_others_bytes=others, processes=own)


def _of_process(engine: OwnEngine) -> int:
    if engine.bytes is not None:
        return engine.bytes
    return sum(map(_written_by, _family(engine.pid)))


def _written_by(pid: int) -> int:
    try:
        return private_bytes(pid)
    except OSError:
        return 0


def _gpu_usage(devices: Iterable[LocalDevice], engines: Sequence[OwnEngine]) -> dict[str, Usage]:
    found = {}
    families = {engine.pid: _family(engine.pid) for engine in engines}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.warning("NVML: %s", error)
        return {}
    try:
        for device in devices:
            own = [one for one in engines if device.name in one.devices]
            try:
                found[device.name] = _of_gpu(device, own, families)
            except pynvml.NVMLError as error:
                log.warning("%s: %s", device.name, error)
    finally:
        pynvml.nvmlShutdown()
    return found


def _of_gpu(device: LocalDevice, own: Sequence[OwnEngine], families: Mapping[int, set[int]]) -> Usage:
    handle = pynvml.nvmlDeviceGetHandleByIndex(device.index)
    used = _used(handle)
    # A pid may be listed more than once; the bytes of another user's process may be withheld.
    listed = {one.pid: one.usedGpuMemory or 0 for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    seen = {engine.pid: sum(listed.get(pid, 0) for pid in families[engine.pid]) for engine in own}
    # In a pid namespace of its own a node finds none of its engines in NVML's list: what they say counts.
    ours = sum(seen.values()) or sum(engine.bytes or 0 for engine in own)
    return Usage(used_bytes=used, used_by_others_bytes=max(0, used - ours), processes=listed)


def _used(handle: object) -> int:
    """Without what the driver keeps for itself, where NVML tells it apart."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used)
    except pynvml.NVMLError:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def _family(pid: int) -> set[int]:
    """A process and its children: an engine core may have processes of its own."""
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.NoSuchProcess:
        return {pid}
