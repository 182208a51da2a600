"""The progress of an import, in its version's row: at most one write a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from django.utils import timezone

from mmserve.errors import Conflict
from registry.models import ModelVersion, VersionState
from registry.report import FileProgress

INTERVAL_S = 1.0


class Progress:
    """Writes stage, bytes and estimated time left; notices that the version is gone."""

    def __init__(self, version_id: int, attempt: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._version_id = version_id
        self._attempt = attempt
        self._clock = clock
        self._stage = ""
        self._started = self._written = 0.0
        self._first_bytes: int | None = None

    def enter(self, stage: str) -> None:
        """Begin a stage; written at once."""
        self._stage, self._started, self._first_bytes = stage, self._clock(), None
        self._write(0, None)

    def report(self, done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = (), /) -> None:
        """How far the stage is."""
        if self._first_bytes is None:
            # What an earlier attempt had brought says nothing of the speed.
            self._first_bytes, self._started = done_bytes, self._clock()
        if self._clock() - self._written >= INTERVAL_S:
            self._write(done_bytes, total_bytes, files)

    def _write(self, done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = ()) -> None:
        self._written = self._clock()
        moved, elapsed = done_bytes - (self._first_bytes or 0), self._written - self._started
        rate = moved / elapsed if elapsed > 0 and moved > 0 else None
        eta_s = round(max(0, total_bytes - done_bytes) / rate, 1) if rate and total_bytes else None
        progress = {
            "stage": self._stage,
            "done_bytes": done_bytes,
            "total_bytes": total_bytes,
            "bytes_per_s": round(rate) if rate else None,
            "eta_s": eta_s,
            "files": [file._asdict() for file in files],
            "at": timezone.now().isoformat(),
        }
        rows = ModelVersion.objects.filter(
            pk=self._version_id, attempt=self._attempt, state=VersionState.FETCHING
        )
        if not rows.update(progress=progress):
            raise Conflict("the fetch was cancelled, or the version deleted")
