"""A bound on bytes a second that several threads share (token bucket)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.25


class Bandwidth:
    """``bytes_per_s`` 0: no bound."""

    def __init__(
        self,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def spend(self, count: int) -> None:
        """Wait until ``count`` bytes more are within the bound."""
        if not self._rate:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_S) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)
