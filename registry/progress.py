"""The progress of an import, in its version's row: at most one write a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.utils import timezone

from mmserve.errors import Conflict
from registry.models import ModelVersion, VersionState

INTERVAL_S = 1.0


class Progress:
    """Writes stage, bytes and estimated time left; notices that the version is gone."""

    def __init__(self, version_id: int, attempt: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._version_id = version_id
        self._attempt = attempt
        self._clock = clock
        self._stage = ""
        self._started = self._written = 0.0

    def enter(self, stage: str) -> None:
        """Begin a stage; written at once."""
        self._stage, self._started = stage, self._clock()
        self._write(0, None)

    def report(self, done_bytes: int, total_bytes: int | None) -> None:
        """How far the stage is."""
        if self._clock() - self._written >= INTERVAL_S:
            self._write(done_bytes, total_bytes)

    def _write(self, done_bytes: int, total_bytes: int | None) -> None:
        self._written = self._clock()
        elapsed = self._written - self._started
        eta_s = None
        if total_bytes and done_bytes:
            eta_s = round(elapsed * max(0, total_bytes - done_bytes) / done_bytes, 1)
        progress = {
            "stage": self._stage,
            "done_bytes": done_bytes,
            "total_bytes": total_bytes,
            "eta_s": eta_s,
            "at": timezone.now().isoformat(),
        }
        rows = ModelVersion.objects.filter(
            pk=self._version_id, attempt=self._attempt, state=VersionState.FETCHING
        )
        if not rows.update(progress=progress):
            raise Conflict("the fetch was cancelled, or the version deleted")
