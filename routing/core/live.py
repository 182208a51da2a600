"""The live state of the deployments, as columns that a decision can read at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# How long a load takes that was never measured.
UNKNOWN_LOAD_S = 60.0
# A rate just above zero would make an endless time of it.
MOST_S = 1e6

READY, LOADING, LOAD, CONTEXT, TTFT, TTFT_PER_TOKEN, TPOT, STREAMS, KV, BREAKER, ETA = range(11)
COLUMNS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentLoad:
    """Live state of one deployment's replicas together; rates are per second."""

    ready: int = 0
    loading: int = 0
    running: int = 0
    waiting: int = 0
    max_streams: int = 0
    jobs_per_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft_s: float = 0.0
    kv_usage: float = 0.0
    context_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What is known of a deployment's latency, as coefficients.

    TTFT is ``base_s + per_waiting_s × waiting + per_token_s × prompt tokens`` (with the load time on top while
    no replica is ready), TPOT is ``tpot_s + tpot_per_running_s × running``.
    """

    base_s: float = 0.0
    per_waiting_s: float = 0.0
    per_token_s: float = 0.0
    tpot_s: float = 0.0
    tpot_per_running_s: float = 0.0


NO_LOAD = DeploymentLoad()


def measured(load: DeploymentLoad) -> Latency:
    """Where nothing was learned: the replicas' own averages, and the queue at the pace that it drains."""
    return Latency(
        base_s=load.ttft_s,
        # A rate that has faded for hours is no longer zero, and one over it has no number.
        per_waiting_s=1.0 / max(load.jobs_per_s, 1.0 / MOST_S) if load.jobs_per_s > 0 else 0.0,
        tpot_s=load.running / max(load.tokens_per_s, 1.0 / MOST_S) if load.tokens_per_s > 0 else 0.0,
    )


class LiveColumns:
    """One row a deployment, written as beats arrive; row 0 is "nobody", never ready.

    Owned by one event loop. ``loads`` stays beside it for what wants names rather than columns.
    """

    __slots__ = ("_broken", "_eta_s", "_latency", "_load_s", "data", "loads", "rows")

    def __init__(self, rows: Mapping[str, int], load_s: Mapping[str, float | None]) -> None:
        """``rows`` by deployment, and the seconds that a load of each takes, where that is known."""
        self.rows = rows
        self.data: Floats = np.zeros((COLUMNS, len(rows) + 1))
        self.loads: dict[str, DeploymentLoad] = {}
        self._load_s = load_s
        self._eta_s: dict[str, float] = {}
        self._latency: dict[str, Latency] = {}
        self._broken: set[str] = set()
        for key, row in self.rows.items():
            self.data[TTFT, row] = self._cold_s(key)
            self.data[ETA, row] = load_s.get(key) or 0.0

    def note(self, deployment: str, load: DeploymentLoad | None) -> None:
        """The replicas' state changed; None: none of them is heard of any more."""
        if load is None:
            self.loads.pop(deployment, None)
        else:
            self.loads[deployment] = load
        self._write(deployment)

    def take_over(self, before: LiveColumns) -> None:
        """Begin with what was known under the table before."""
        self.loads = before.loads
        self._latency = before._latency
        self._eta_s = before._eta_s
        self._broken = before._broken
        for deployment in {*self.loads, *self._latency, *self._eta_s}:
            self._write(deployment)
        for deployment in self._broken:
            self.set_breaker(deployment, True)

    def learn(self, deployment: str, latency: Latency | None) -> None:
        """The latency model of a deployment changed; None: back to its measured averages."""
        if latency is None:
            self._latency.pop(deployment, None)
        else:
            self._latency[deployment] = latency
        self._write(deployment)

    def expect(self, deployment: str, eta_s: float | None) -> None:
        """In how many seconds a deployment that is not up is expected to be; None: as a load of it usually takes."""
        if eta_s is None:
            self._eta_s.pop(deployment, None)
        else:
            self._eta_s[deployment] = eta_s
        self._write(deployment)

    def set_breaker(self, deployment: str, is_open: bool) -> None:
        """Whether the deployment's circuit breaker lets nothing pass."""
        (self._broken.add if is_open else self._broken.discard)(deployment)
        row = self.rows.get(deployment)
        if row is not None:
            self.data[BREAKER, row] = is_open

    @property
    def any_broken(self) -> bool:
        """Whether a circuit breaker is open somewhere."""
        return bool(self._broken)

    def _cold_s(self, deployment: str) -> float:
        eta_s = self._known_s(deployment)
        return UNKNOWN_LOAD_S if eta_s is None else eta_s

    def _known_s(self, deployment: str) -> float | None:
        found = self._eta_s.get(deployment)
        return self._load_s.get(deployment) if found is None else found

    def _write(self, deployment: str) -> None:
        row = self.rows.get(deployment)
        if row is None:
            return
        load = self.loads.get(deployment, NO_LOAD)
        latency = self._latency.get(deployment) or measured(load)
        ttft_s = latency.base_s + latency.per_waiting_s * load.waiting
        self.data[:BREAKER, row] = (
            load.ready,
            load.loading,
            (load.running + load.waiting) / max(1, load.max_streams),
            load.context_length,
            min(ttft_s if load.ready else ttft_s + self._cold_s(deployment), MOST_S),
            latency.per_token_s,
            min(latency.tpot_s + latency.tpot_per_running_s * load.running, MOST_S),
            load.running,
            load.kv_usage,
        )
        # 0 where nobody knows: nothing is too late then.
        self.data[ETA, row] = self._known_s(deployment) or 0.0
