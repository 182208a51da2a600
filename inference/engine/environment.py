"""The environment that vLLM reads when it is imported; whoever imports it first prepares it."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # vLLM would pin every engine to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that spin at a barrier while another process has their core made an engine 60 times slower
    # on two cores (1 token/s). 10 ms is faster than 1 ms on an idle machine (78 against 61 tokens/s), and two
    # engines on two cores share them as evenly.
    "KMP_BLOCKTIME": "10",  # libiomp, in ms
    "GOMP_SPINCOUNT": "3000",  # libgomp, where libiomp is not there
    # oneDNN keeps 1,024 kernels, one a layer's shape and batch size: an engine grew by 30 MB with each new mix of
    # requests. vLLM's layers keep their last 32 themselves; growth now ends at 58 MB and nothing is slower.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
# vLLM recommends both; whichever is there is preloaded.
PRELOADED = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libiomp5.so")
LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


def prepare(environment: MutableMapping[str, str] = os.environ, *, on_cpu: bool) -> None:
    """Fill in what an engine needs; what the operator has set stays."""
    for name, value in ENGINE_ENVIRONMENT.items():
        environment.setdefault(name, value)
    if on_cpu:
        environment.setdefault("VLLM_TARGET_DEVICE", "cpu")
        # Compiling takes 40 s of every load and 10 s of the first request with logprobs, and here nothing is
        # faster afterwards. An operator who wants it sets this to 0 and extra.enforce_eager to false.
        environment.setdefault("TORCH_COMPILE_DISABLE", "1")


def preload() -> str:
    """Value of LD_PRELOAD for a process that will run engines on the CPU."""
    folders = [Path(sys.prefix) / "lib", *map(Path, LIBRARY_FOLDERS)]
    found: dict[str, str] = {}
    for name in PRELOADED:
        kind = name.split(".")[0].removesuffix("_minimal")
        for folder in folders:
            if kind not in found and (folder / name).exists():
                found[kind] = str(folder / name)
    return ":".join([*found.values(), *filter(None, [os.environ.get("LD_PRELOAD")])])
