"""A load failed: are its files still what the manifest says? They are all hashed again, while others are served."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from django.db import connections

from registry import cache, store
from registry.models import ModelVersion
from registry.stamp import Damage, damage

log = logging.getLogger(__name__)

# Files that were whole are not suspected again for so long, while one try follows another.
TRUSTED_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the files of a load that failed turned out to be."""

    replica: str
    version: ModelVersion
    damage: list[Damage]
    renewed: bool  # only this node's copy was damaged: it was brought anew from the store


class Suspicion:
    """Hashes in threads of its own, which nobody waits for at the end; asked and read by the agent."""

    def __init__(self) -> None:
        self._looking: set[str] = set()  # paths of versions' files
        self._whole_at: dict[str, float] = {}
        self._looked: SimpleQueue[Finding] = SimpleQueue()

    def look(self, replica: str, version: ModelVersion, folder: Path) -> None:
        """Hash the files in the folder from which the replica was loaded."""
        path = version.path
        if path in self._looking or time.monotonic() - self._whole_at.get(path, -TRUSTED_S) < TRUSTED_S:
            return
        self._looking.add(path)
        threading.Thread(
            target=self._look, args=(replica, version, folder), name="suspicion", daemon=True
        ).start()

    def forget(self, version: ModelVersion) -> None:
        """It has been loaded since: a load that fails from now on is another matter."""
        self._whole_at.pop(version.path, None)

    def findings(self) -> Iterator[Finding]:
        """What was found damaged since the last call."""
        while not self._looked.empty():
            finding = self._looked.get()
            self._looking.discard(finding.version.path)
            if finding.damage:
                yield finding
            else:
                self._whole_at[finding.version.path] = time.monotonic()

    def _look(self, replica: str, version: ModelVersion, folder: Path) -> None:
        found: list[Damage] = []
        renewed = False
        try:
            found = damage(folder, cache.manifest_of(version), full=True)
            if found and not store.is_local():
                cache.renew(version)
                renewed = True
        except Exception:  # whatever it is, the load has failed already and is tried again
            log.exception("the files of %s could not be looked through", version.served_id)
        finally:
            connections.close_all()
            self._looked.put(Finding(replica=replica, version=version, damage=found, renewed=renewed))
