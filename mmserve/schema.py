"""The hot path in the OpenAPI schema: it is mounted beside Django, so drf-spectacular cannot see it."""

from __future__ import annotations

from typing import Any


def add_hot_path(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """drf-spectacular's postprocessing hook."""
    return result
