"""How far vLLM is with a checkpoint's weights: it says so to nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader.default_loader import DefaultModelLoader


def checkpoint_bytes(model_path: str) -> int | None:
    """The size of the weights' files; None where there are none that vLLM counts."""
    return sum(file.stat().st_size for file in Path(model_path).glob("*.safetensors")) or None


@contextmanager
def counted(tell: Callable[[int], None]) -> Iterator[None]:
    """``tell`` hears how many bytes are read, tensor by tensor, while an engine loads in this process."""
    original = DefaultModelLoader.get_all_weights

    def counting(self: Any, *args: Any) -> Iterator[tuple[str, Any]]:
        done = 0
        for name, tensor in original(self, *args):
            yield name, tensor
            done += tensor.numel() * tensor.element_size()
            tell(done)

    DefaultModelLoader.get_all_weights = counting
    try:
        yield
    finally:
        DefaultModelLoader.get_all_weights = original
