"""A file that is elsewhere, and how a range of it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

# Bytes in order; a chunk is valid until the next one is asked for.
Chunks = Iterator["bytes | memoryview"]


class FetchInterrupted(Exception):
    """A range ended early or could not be begun, for a reason that may pass: worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a source.

    ``open(start, end)`` reads the bytes ``[start, end)``. It raises FetchInterrupted for what may pass (a cut
    connection, a 503), and an MmserveError for what will not (gone, forbidden, changed meanwhile).
    ``validator`` names this state of the file (an ETag, a time): parts of another state are never mixed in.
    """

    path: str
    size_bytes: int
    open: Callable[[int, int], AbstractContextManager[Chunks]]
    validator: str = ""
    sha256: str | None = None
    ranges: bool = True  # False: only the whole file can be read
