"""A replica's load as its beat tells it: rates and averages over about ten seconds."""

from __future__ import annotations

import math

from inference.engine.messages import Outcome, Report

WINDOW_S = 10.0


class DecayingSum:
    """A sum whose parts lose weight with a time constant of WINDOW_S; over WINDOW_S it is a rate."""

    __slots__ = ("_at", "_value")

    def __init__(self, now: float) -> None:
        self._at = now
        self._value = 0.0

    def add(self, amount: float, now: float) -> None:
        self._value = self.value(now) + amount
        self._at = now

    def value(self, now: float) -> float:
        return self._value * math.exp(-max(0.0, now - self._at) / WINDOW_S)


class DecayingMean:
    """A mean in which recent samples weigh more; it keeps its last value while no sample comes."""

    __slots__ = ("_count", "_sum", "mean")

    def __init__(self, now: float) -> None:
        self._sum = DecayingSum(now)
        self._count = DecayingSum(now)
        self.mean = 0.0

    def add(self, samples: list[float], now: float) -> None:
        self._sum.add(sum(samples), now)
        self._count.add(len(samples), now)
        self.mean = self._sum.value(now) / self._count.value(now)


class Load:
    """Fed with the engine's reports, read by the heartbeat."""

    def __init__(self, now: float) -> None:
        self.steps = 0
        self.running = 0
        self.peak_running = 0
        self.kv_usage = 0.0
        self._born = now
        self._tokens = DecayingSum(now)
        self._jobs = DecayingSum(now)
        self.ttft_s = DecayingMean(now)
        self.tpot_s = DecayingMean(now)

    def take(self, report: Report, now: float) -> None:
        self.running = report.running_streams
        self.peak_running = max(self.peak_running, report.batch_streams)
        self.kv_usage = report.kv_usage
        self.steps += report.stepped
        self._tokens.add(report.tokens, now)
        self._jobs.add(sum(ended.outcome is Outcome.FINISHED for ended in report.ended), now)
        if report.ttfts_s:
            self.ttft_s.add(report.ttfts_s, now)
        if report.tpots_s:
            self.tpot_s.add(report.tpots_s, now)

    def tokens_per_s(self, now: float) -> float:
        return self._tokens.value(now) / self._span(now)

    def jobs_per_s(self, now: float) -> float:
        return self._jobs.value(now) / self._span(now)

    def _span(self, now: float) -> float:
        """Weight of the time lived so far, so that a young replica's rate is not understated."""
        return WINDOW_S * (1.0 - math.exp(-max(now - self._born, 0.5) / WINDOW_S))
