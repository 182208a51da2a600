"""The files of this node's replicas: brought in the background, held while an engine has them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from django.db import connections

from registry import cache
from registry.cache import Held
from registry.models import ModelVersion
from registry.report import FileProgress, Report, quiet

AT_ONCE = 2


class FetchProgress:
    """How far one fetch is; written by the thread that fetches, read by the agent."""

    def __init__(self) -> None:
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self._first: tuple[float, int] | None = None

    def report(self, done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = (), /) -> None:
        """Called as bytes come."""
        if self._first is None:
            # What an earlier attempt had brought says nothing of the speed.
            self._first = (time.monotonic(), done_bytes)
        self.done_bytes, self.total_bytes = done_bytes, total_bytes

    def part(self, before_bytes: int, after_bytes: int) -> Report:
        """The report of one of several fetches that follow each other; bytes of those before and after it."""

        def report(done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = (), /) -> None:
            total = None if total_bytes is None else before_bytes + total_bytes + after_bytes
            self.report(before_bytes + done_bytes, total, files)

        return report

    @property
    def left_s(self) -> float | None:
        """Seconds until all is there, at the speed so far; None before there is one."""
        if self._first is None or self.total_bytes is None:
            return None
        since, had_bytes = self._first
        moved, elapsed_s = self.done_bytes - had_bytes, time.monotonic() - since
        if moved <= 0 or elapsed_s <= 0:
            return None
        return (self.total_bytes - self.done_bytes) * elapsed_s / moved


class HeldFiles:
    """The files of all versions that one engine reads: its own, and its draft's."""

    def __init__(self, versions: Sequence[ModelVersion], progress: FetchProgress | None = None) -> None:
        """Holds them, and brings what is not here; of several that cannot all be held none is."""
        sizes = [
            # Versions that share files bring them once.
            0
            if cache.is_at_hand(one) or one.path in {other.path for other in versions[:at]}
            else size_bytes(one)
            for at, one in enumerate(versions)
        ]
        self.folders: list[tuple[ModelVersion, Path]] = []
        self._held: list[Held] = []
        try:
            for at, version in enumerate(versions):
                report = progress.part(sum(sizes[:at]), sum(sizes[at + 1 :])) if progress else quiet
                self._held.append(cache.hold(version, report))
                self.folders.append((version, self._held[-1].folder))
        except BaseException:
            self.release()
            raise

    @property
    def paths(self) -> list[Path]:
        """In the order of the versions."""
        return [folder for _, folder in self.folders]

    def release(self) -> None:
        """Let go."""
        for held in self._held:
            held.release()


class ReplicaFiles:
    """By replica. A cached or local version costs a few stats; a thread fetches what is elsewhere and hashes what was
    touched, for the lease does not wait for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="files")
        self._wanted: dict[str, list[int]] = {}
        self._coming: dict[str, Future[HeldFiles]] = {}
        self._held: dict[str, HeldFiles] = {}
        self._progress: dict[str, FetchProgress] = {}

    def folders(self, replica: str, versions: Sequence[ModelVersion]) -> list[Path] | None:
        """Where the replica's files lie, by version; None while they are on their way.

        Raises what bringing them raised.
        """
        wanted = [version.pk for version in versions]
        if self._wanted.setdefault(replica, wanted) != wanted:
            # Its deployment got another draft meanwhile.
            self.release(replica)
            self._wanted[replica] = wanted
        if replica in self._held:
            return self._held[replica].paths
        coming = self._coming.get(replica)
        if coming is None and all(map(cache.is_at_hand, versions)):
            self._held[replica] = HeldFiles(versions)
            return self._held[replica].paths
        if coming is None:
            progress = self._progress[replica] = FetchProgress()
            self._coming[replica] = self._pool.submit(_bring, versions, progress)
            return None
        if not coming.done():
            return None
        del self._coming[replica], self._progress[replica]
        self._held[replica] = coming.result()
        return self._held[replica].paths

    def held(self, replica: str) -> list[tuple[ModelVersion, Path]]:
        """The versions whose files the replica has, and where they lie."""
        held = self._held.get(replica)
        return [] if held is None else held.folders

    def progress(self, replica: str) -> FetchProgress | None:
        """How far its files are; None if none are on their way."""
        return self._progress.get(replica)

    def release(self, replica: str) -> None:
        """The replica has ended, or never began."""
        self._wanted.pop(replica, None)
        held = self._held.pop(replica, None)
        if held is not None:
            held.release()
        self._progress.pop(replica, None)
        coming = self._coming.pop(replica, None)
        if coming is not None and not coming.cancel():
            coming.add_done_callback(_let_go)


def size_bytes(version: ModelVersion) -> int:
    """Of all its files."""
    return sum(version.files.values_list("size_bytes", flat=True))


def _bring(versions: Sequence[ModelVersion], progress: FetchProgress) -> HeldFiles:
    try:
        return HeldFiles(versions, progress)
    finally:
        connections.close_all()


def _let_go(coming: Future[HeldFiles]) -> None:
    if coming.exception() is None:
        coming.result().release()
