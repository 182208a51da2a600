"""The files of this node's replicas: brought in the background, held while an engine has them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from django.db import connections

from registry import cache
from registry.cache import Held
from registry.models import ModelVersion

AT_ONCE = 2


class ReplicaFiles:
    """By replica. A cached or local version costs a few stats; one that is elsewhere is fetched by a thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="files")
        self._coming: dict[str, Future[Held]] = {}
        self._held: dict[str, Held] = {}

    def folder(self, replica: str, version: ModelVersion) -> Path | None:
        """Where the replica's files lie; None while they are on their way. Raises what bringing them raised."""
        if replica in self._held:
            return self._held[replica].folder
        coming = self._coming.get(replica)
        if coming is None and cache.is_here(version):
            self._held[replica] = cache.hold(version)
            return self._held[replica].folder
        if coming is None:
            self._coming[replica] = self._pool.submit(_bring, version)
            return None
        if not coming.done():
            return None
        del self._coming[replica]
        self._held[replica] = coming.result()
        return self._held[replica].folder

    def release(self, replica: str) -> None:
        """The replica has ended, or never began."""
        held = self._held.pop(replica, None)
        if held is not None:
            held.release()
        coming = self._coming.pop(replica, None)
        if coming is not None and not coming.cancel():
            coming.add_done_callback(_let_go)


def _bring(version: ModelVersion) -> Held:
    try:
        return cache.hold(version)
    finally:
        connections.close_all()


def _let_go(coming: Future[Held]) -> None:
    if coming.exception() is None:
        coming.result().release()
