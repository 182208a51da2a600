"""Which engine serves: vLLM's adapter, unless the operator names another class behind the same interface."""

from __future__ import annotations

import importlib
import os
from typing import Any

VARIABLE = "MMSERVE_ENGINE"
VLLM = "inference.engine.adapter:VllmEngine"


def is_vllm() -> bool:
    """Whether vLLM is what engines of this machine run."""
    return chosen() == VLLM


def chosen() -> str:
    """``module:class``."""
    return os.environ.get(VARIABLE) or VLLM


def engine_class() -> Any:
    """The class; importing it imports the engine."""
    module, _, name = chosen().partition(":")
    return getattr(importlib.import_module(module), name)
