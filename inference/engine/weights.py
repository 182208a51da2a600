"""How far vLLM is with a checkpoint's weights: it says so to nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader.default_loader import DefaultModelLoader


def checkpoint_bytes(*folders: str) -> int | None:
    """The size of the weights' files; None where there are none that vLLM counts."""
    files = (file for folder in folders for file in Path(folder).glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) or None


@contextmanager
def counted(tell: Callable[[int], None]) -> Iterator[None]:
    """``tell`` hears how many bytes are read, tensor by tensor, while an engine loads in this process.

    A draft model's come after its target's.
    """
    original = DefaultModelLoader.get_all_weights
    done = 0

    def counting(self: Any, *args: Any) -> Iterator[tuple[str, Any]]:
        nonlocal done
        for name, tensor in original(self, *args):
            yield name, tensor
            done += tensor.numel() * tensor.element_size()
            tell(done)

    DefaultModelLoader.get_all_weights = counting
    try:
        yield
    finally:
        DefaultModelLoader.get_all_weights = original
