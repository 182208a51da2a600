"""Redis scripts of the engine worker: what RQ does in many commands a job, done in one call a batch."""

from __future__ import annotations

from importlib.resources import files


def source(name: str) -> str:
    """The text of ``lua/<name>.lua``."""
    return (files("inference.engine") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
