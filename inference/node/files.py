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
from registry.report import FileProgress

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


class ReplicaFiles:
    """By replica. A cached or local version costs a few stats; a thread fetches what is elsewhere and hashes what was
    touched, for the lease does not wait for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="files")
        self._coming: dict[str, Future[Held]] = {}
        self._held: dict[str, Held] = {}
        self._progress: dict[str, FetchProgress] = {}

    def folder(self, replica: str, version: ModelVersion) -> Path | None:
        """Where the replica's files lie; None while they are on their way. Raises what bringing them raised."""
        if replica in self._held:
            return self._held[replica].folder
        coming = self._coming.get(replica)
        if coming is None and cache.is_at_hand(version):
            self._held[replica] = cache.hold(version)
            return self._held[replica].folder
        if coming is None:
            progress = self._progress[replica] = FetchProgress()
            self._coming[replica] = self._pool.submit(_bring, version, progress)
            return None
        if not coming.done():
            return None
        del self._coming[replica], self._progress[replica]
        self._held[replica] = coming.result()
        return self._held[replica].folder

    def held(self, replica: str) -> Path | None:
        """Where the files lie that the replica has."""
        held = self._held.get(replica)
        return None if held is None else held.folder

    def progress(self, replica: str) -> FetchProgress | None:
        """How far its files are; None if none are on their way."""
        return self._progress.get(replica)

    def release(self, replica: str) -> None:
        """The replica has ended, or never began."""
        held = self._held.pop(replica, None)
        if held is not None:
            held.release()
        self._progress.pop(replica, None)
        coming = self._coming.pop(replica, None)
        if coming is not None and not coming.cancel():
            coming.add_done_callback(_let_go)


def _bring(version: ModelVersion, progress: FetchProgress) -> Held:
    try:
        return cache.hold(version, progress.report)
    finally:
        connections.close_all()


def _let_go(coming: Future[Held]) -> None:
    if coming.exception() is None:
        coming.result().release()
