"""How an engine lies down on a rung of its ladder and gets up again: proven, before a client is routed there."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

import psutil

from inference.capacity.ladder import SERVING
from inference.engine.base import Engine

logger = logging.getLogger(__name__)


class WakeFailed(Exception):
    """What woke is not what went to sleep: it may only end."""


@dataclass(frozen=True, slots=True)
class Rung:
    """Where an engine is, and what that means for memory."""

    name: str = SERVING
    freed_bytes: int = 0  # on each device
    host_bytes: int = 0
    woke_from: str = ""  # the last rung that it came back from
    woke_s: float = 0.0  # how long that took, checks included


class Rest:
    """Owned by the engine's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before: tuple[str, list[int]] = ("", [])
        self.rung = Rung()

    def lie_down(self, rung: str) -> Rung:
        """Go down; from serving, note what it is before."""
        engine = self._engine
        if self.rung.name == SERVING:
            self._before = (engine.fingerprint(), engine.canary())
        process = psutil.Process(os.getpid())
        resident = process.memory_info().rss
        freed = self.rung.freed_bytes + engine.sleep(rung)
        host = self.rung.host_bytes + max(0, process.memory_info().rss - resident)
        logger.info("rests as %s: %d bytes freed, %d of host memory taken", rung, freed, host)
        self.rung = Rung(rung, freed, host, self.rung.woke_from, self.rung.woke_s)
        return self.rung

    def get_up(self) -> Rung:
        """Serve again: weights as they were, and the one token that was said before. Else WakeFailed."""
        begun = time.monotonic()
        fingerprint, token = self._before
        self._engine.wake()
        if self._engine.fingerprint() != fingerprint:
            raise WakeFailed(f"its weights are not what they were before it was {self.rung.name}")
        said = self._engine.canary()
        if said != token:
            raise WakeFailed(f"the canary said token {said} after it was {self.rung.name}, not {token}")
        self.rung = Rung(woke_from=self.rung.name, woke_s=time.monotonic() - begun)
        logger.info("woke from %s in %.3f s", self.rung.woke_from, self.rung.woke_s)
        return self.rung
