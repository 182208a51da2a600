"""Which configuration revision each process runs: reported to Redis as it is applied, read by the admin."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from redis import RedisError

from inference.models import Node
from inference.notify import connection
from inference.protocol import REPORT_STALE_S, REVISIONS_KEY, revision_report
from registry.revision import current

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """How far a revision has got; ``behind`` are the processes that run another, with theirs."""

    revision: int
    processes: dict[str, int]

    @property
    def behind(self) -> dict[str, int]:
        return {name: number for name, number in self.processes.items() if number < self.revision}

    @property
    def words(self) -> str:
        """``4/4``"""
        return f"{len(self.processes) - len(self.behind)}/{len(self.processes)}"


def report(process: str, revision: int) -> None:
    """This process runs ``revision`` now; whoever is not heard of for REPORT_STALE_S is gone."""
    try:
        connection().hset(REVISIONS_KEY, process, revision_report(revision, time.time()))
    except RedisError as error:
        log.warning("cannot report the revision: %s", error)


def applied() -> Applied:
    """Who runs what: gateways and controllers as they reported, nodes as their rows say."""
    revision = current()
    now = time.time()
    processes = {
        f"node {name}": number
        for name, number, seen in Node.objects.values_list("name", "revision", "last_seen")
        if seen is not None and now - seen.timestamp() < REPORT_STALE_S
    }
    try:
        reports: dict[bytes, bytes] = connection().hgetall(REVISIONS_KEY)  # type: ignore[assignment]
        for name, text in reports.items():
            number, _, at = text.decode().partition(" ")
            if now - float(at) < REPORT_STALE_S:
                processes[name.decode()] = int(number)
            else:
                connection().hdel(REVISIONS_KEY, name)
    except (RedisError, ValueError) as error:
        log.warning("the processes' revisions cannot be read: %s", error)
    return Applied(revision=revision, processes=processes)
