"""The routing table and the access keys follow the configuration's revision: pushed, and polled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from inference.gateway import metrics
from inference.gateway.auth import Authenticator
from mmserve.errors import Unavailable
from routing.core.table import RoutingTable

log = logging.getLogger(__name__)

POLL_S = 1.0
SOURCE_TIMEOUT_S = 10.0
DATABASE_STALE_S = 5.0


class TableWatch:
    """Owns the table that this process runs. While the source is away, the last one stays."""

    def __init__(
        self,
        authenticator: Authenticator,
        table_source: Callable[[], Awaitable[RoutingTable]],
        revision_source: Callable[[], Awaitable[int]],
    ) -> None:
        self._authenticator = authenticator
        self._table_source = table_source
        self._revision_source = revision_source
        self._table: RoutingTable | None = None
        self._keys_revision = -1
        self._answered_at = float("-inf")
        self._failure = "not asked yet"
        self._pushed = asyncio.Event()
        self.applied = asyncio.Event()  # set whenever a new table is in use; whoever waits clears it
        self.loaded = asyncio.Event()

    def current(self) -> RoutingTable:
        """The table; Unavailable before the first one is loaded."""
        if self._table is None:
            raise Unavailable(f"The routing table is not loaded: {self._failure}.", retry_after_s=1.0)
        return self._table

    @property
    def revision(self) -> int | None:
        """The revision that this process runs; None before the first table."""
        return None if self._table is None else self._table.revision

    @property
    def database_failure(self) -> str | None:
        """Why the source does not answer, or None while it does."""
        return self._failure if time.monotonic() - self._answered_at > DATABASE_STALE_S else None

    def push(self, revision: int) -> None:
        """A ``config.revision`` arrived: look now rather than at the next poll."""
        if self._table is None or revision > self._table.revision or revision > self._keys_revision:
            self._pushed.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self.look()
            try:
                async with asyncio.timeout(POLL_S):
                    await self._pushed.wait()
            except TimeoutError:
                pass  # nothing was pushed: poll
            self._pushed.clear()

    async def look(self) -> None:
        """Compare revisions, and take the new table and keys if there are any."""
        try:
            async with asyncio.timeout(SOURCE_TIMEOUT_S):
                revision = await self._revision_source()
                if self._table is None or revision != self._table.revision:
                    self._table = await self._table_source()
                    metrics.revision.set(self._table.revision)
                    self.loaded.set()
                    self.applied.set()
                if revision != self._keys_revision:
                    await self._authenticator.refresh(revision)
                    self._keys_revision = revision
        # The sources are handed in: whatever they raise means that the configuration cannot be read now.
        except Exception as error:  # noqa: BLE001
            if self.database_failure is None or self._failure == "not asked yet":
                log.warning("the configuration cannot be read: %s", error)
            self._failure = f"{type(error).__name__}: {error}"[:300]
        else:
            self._answered_at = time.monotonic()
