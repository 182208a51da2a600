"""The circuit breakers as the gateway processes last told them: one a process, for each deployment."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import redis

from routing.connection import connection
from routing.core.breaker import State
from routing.core.records import BREAKERS_KEY, BREAKERS_STALE_S, BreakerReport

log = logging.getLogger(__name__)

SEVERITY = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentBreakers:
    """Of one deployment, in each process that is heard of; one that has sent it nothing has it closed."""

    deployment: str
    version: str
    processes: Mapping[str, State]

    @property
    def worst(self) -> State:
        return worst_of(self.processes.values()) or State.CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakers:
    """The worst first. Without processes (none runs, or Redis is away) nothing is known."""

    processes: tuple[str, ...]
    deployments: tuple[DeploymentBreakers, ...]

    def by_version(self) -> dict[str, State]:
        """The worst of each version's deployments."""
        # The worst come first: the last one written wins.
        return {one.version: one.worst for one in reversed(self.deployments)}


def worst_of(states: Iterable[State]) -> State | None:
    """The one that lets the least through."""
    return max(states, key=SEVERITY.__getitem__, default=None)


def breakers() -> Breakers:
    """What each gateway process last said, of those that still live."""
    reports = _reports()
    served = {name: version for report in reports.values() for name, (version, _) in report.states.items()}
    found = [
        DeploymentBreakers(
            deployment=name,
            version=version,
            processes={
                process: report.states[name][1] if name in report.states else State.CLOSED
                for process, report in reports.items()
            },
        )
        for name, version in served.items()
    ]
    found.sort(key=lambda one: (-SEVERITY[one.worst], one.deployment))
    return Breakers(processes=tuple(reports), deployments=tuple(found))


def _reports() -> dict[str, BreakerReport]:
    now = time.time()
    found: dict[str, BreakerReport] = {}
    try:
        written: dict[bytes, bytes] = connection().hgetall(BREAKERS_KEY)  # type: ignore[assignment]
        for name, text in sorted(written.items()):
            report = _read(text)
            if report is not None and now - report.at < BREAKERS_STALE_S:
                found[name.decode()] = report
            else:
                connection().hdel(BREAKERS_KEY, name)
    except redis.RedisError as error:
        log.warning("the circuit breakers cannot be read: %s", error)
    return found


def _read(text: bytes) -> BreakerReport | None:
    try:
        return msgspec.json.decode(text, type=BreakerReport)
    except msgspec.MsgspecError as error:
        log.warning("a report of circuit breakers is malformed: %s", error)
        return None
