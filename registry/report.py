"""How far a long work is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class FileProgress(NamedTuple):
    """One file under way."""

    path: str
    done_bytes: int
    total_bytes: int


class Report(Protocol):
    """Called as work goes on; raises to stop it. ``total_bytes`` is None while nobody knows."""

    def __call__(
        self, done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = (), /
    ) -> None: ...


def quiet(done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = (), /) -> None:
    """For work whose progress nobody looks at."""
