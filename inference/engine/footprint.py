"""What a loaded engine has really taken, by part: asked of vLLM's workers, in whichever process each of them runs."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from inference.engine.privatepages import private_bytes
from inference.engine.sample import sample_digest

# vLLM's ``worker_extension_cls``.
EXTENSION = "inference.engine.footprint.Measured"
MEASURE = "memory_footprint"
Span = tuple[int, int]  # address, bytes


class Measured:
    """Mixed into vLLM's worker class."""

    model_runner: Any
    device: Any

    def memory_footprint(self) -> dict[str, Any]:
        """Bytes of one worker's parts, its process, and where its KV cache lies; on a GPU of that GPU alone."""
        cache = list(spans(self.model_runner.kv_caches))
        found = {
            "pid": os.getpid(),
            "weights": weights_bytes(self.model_runner.model),
            "kv_cache": sum(size for _, size in cache),
        }
        if (draft := self._draft()) is not None:
            found["draft_weights"] = weights_bytes(draft)
        if self.device.type == "cpu":
            return {**found, "spans": cache, "resident": resident_bytes(cache)}
        return {**found, **_on_gpu(self.device)}

    def weight_sample(self) -> str:
        """A digest of some of this worker's weights, a draft's too."""
        models = [self.model_runner.model, self._draft()]
        return " ".join(sample_digest(model) for model in models if model is not None)

    def _draft(self) -> Any:
        """The model that guesses; None where there is none."""
        return getattr(getattr(self.model_runner, "drafter", None), "model", None)

    def free_bytes(self) -> int:
        """What this worker's GPU has free now."""
        import torch

        return int(torch.accelerator.get_memory_info()[0])


class Footprint:
    """One engine's memory: by part when it was loaded, and what its batches have taken on top since then."""

    def __init__(self, workers: list[dict[str, Any]]) -> None:
        first = workers[0]
        _give_back_what_is_free()
        self._spans: list[Span] = first.get("spans", [])
        # Another process's pages are not ours to look at.
        self._watched = "spans" in first and first["pid"] == os.getpid()
        drafts = {"draft_weights": first["draft_weights"]} if "draft_weights" in first else {}
        cache = first["kv_cache"]
        weights = first["weights"] + sum(drafts.values())
        if "spans" in first:
            pids = {os.getpid(), *(worker["pid"] for worker in workers)}
            whole = sum(map(private_bytes, pids))
            # Pages of the cache are taken as they are first written.
            rest = whole - weights - first["resident"]
            found = {"kv_cache": cache, "runtime": max(0, rest)}
        else:
            peak = max(0, first["peak"] - weights - cache)
            rest = max(0, first["process"] - weights - cache - peak)
            found = {"kv_cache": cache, "activations": peak, "runtime": rest}
        self._parts = {"weights": first["weights"], **drafts, **found}
        # Where the kernel does not let us count the peak anew, what is resident at each look has to do.
        self._resident = "VmHWM" if self._watched and _forget_peak() else "VmRSS"
        self._at_load = self._private() if self._watched else 0
        self._grown = 0

    def parts(self) -> dict[str, int]:
        """Bytes on each of its devices."""
        return dict(self._parts)

    def look(self) -> dict[str, int]:
        """The same, after a look at what the batches take now; cheap, from any thread of the engine's process."""
        if self._watched and self._anonymous() - self._at_load > self._grown:
            self._grown = max(self._grown, self._private() - self._at_load)
            self._parts["activations"] = self._grown
        return self.parts()

    def _private(self) -> int:
        """The most private memory beside the KV cache."""
        return self._anonymous() - resident_bytes(self._spans)

    def _anonymous(self) -> int:
        """The peak since the load, not a sample: a batch's memory comes and goes between two looks."""
        found = dict(_KIB.findall(Path("/proc/self/status").read_text()))
        return 1024 * (int(found[self._resident]) - int(found["RssFile"]) - int(found["RssShmem"]))


def weights_bytes(model: Any) -> int:
    """A model's parameters and buffers, and the copies that kernels keep of them."""
    found = sum(size for _, size in spans([*model.parameters(), *model.buffers()]))
    return found + packed_bytes(model)


def packed_bytes(model: Any) -> int:
    """What vLLM's CPU kernels hold in layouts of their own: no parameter shows it any more, or it is there twice."""
    total = 0
    for module in model.modules():
        kernel = getattr(module, "cpu_linear", None)
        if not getattr(kernel, "__closure__", None):
            continue  # torch's own, on the weight as it is
        weight = module.weight
        rows = _size(module, "output_size_per_partition", "output_size")
        columns = _size(module, "input_size_per_partition", "input_size")
        total += weight.itemsize * (weight.numel() or rows * columns)
    return total


def _size(module: Any, *names: str) -> int:
    return next((found for name in names if (found := getattr(module, name, 0))), 0)


def spans(tensors: Iterable[Any]) -> Iterator[Span]:
    """The memory of (nested lists of) tensors, shared memory once."""
    seen = set()
    waiting = list(tensors)
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | tuple):
            waiting.extend(one)
            continue
        storage = one.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage.data_ptr(), storage.nbytes()


def resident_bytes(found: Iterable[Span]) -> int:
    """How much of these spans has pages (mincore)."""
    return sum(_resident(_MINCORE, *span) for span in found)


def _resident(mincore: Callable[..., int], address: int, size: int) -> int:
    if not size:
        return 0
    begin = address - address % mmap.PAGESIZE
    pages = -(-(address + size - begin) // mmap.PAGESIZE)
    answer = (ctypes.c_ubyte * pages)()
    if mincore(ctypes.c_void_p(begin), ctypes.c_size_t(pages * mmap.PAGESIZE), answer) != 0:
        return size
    return min(size, sum(bytes(answer)) * mmap.PAGESIZE)


def _forget_peak() -> bool:
    """Count the peak of resident memory (VmHWM) from now on; False where the kernel does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _give_back_what_is_free() -> None:
    """What a load has let go of is kept by glibc's allocator, now more of it and now less."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


_KIB = re.compile(r"^(VmHWM|VmRSS|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)
_LIBC = ctypes.CDLL(None, use_errno=True)
_MINCORE = _LIBC.mincore


def _on_gpu(device: Any) -> dict[str, int]:
    """The peak of torch's allocator, and all that the process has of the GPU: context and graphs too."""
    import torch

    reserved = torch.cuda.memory_reserved(device)
    return {
        "peak": torch.cuda.max_memory_allocated(device),
        "process": max(reserved, _of_process(torch.cuda.get_device_properties(device).uuid)),
    }


def _of_process(uuid: Any) -> int:
    """What NVML counts of this process on the GPU; 0 where it does not tell (another pid namespace)."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return 0
    return sum(one.usedGpuMemory or 0 for one in running if one.pid == os.getpid())
