"""Prometheus metrics of the hot path; Django serves them at /metrics."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from inference.gateway.flight import Flight
from routing.core.breaker import State

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_requests = Counter(
    "mmserve_requests", "Answered requests; status is the HTTP status or 499 for a client that left.",
    ("endpoint", "status", "model"),
)  # fmt: skip
_ttft = Histogram("mmserve_ttft_seconds", "From admission to the first token.", ("model",), buckets=_SECONDS)
_tpot = Histogram(
    "mmserve_tpot_seconds", "Time per output token after the first.", ("model",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)  # fmt: skip
_e2e = Histogram("mmserve_e2e_seconds", "From admission to the last token.", ("model",), buckets=_SECONDS)
in_flight = Gauge("mmserve_requests_in_flight", "Requests that this process is answering.")
attempts = Counter("mmserve_attempts", "Jobs enqueued again, after a loss.")
usage_waiting = Gauge("mmserve_usage_records", "Usage records in Redis, rolled up or not.")
usage_lost = Gauge(
    "mmserve_usage_lost", "Usage records that a full stream turned away: nobody will count them."
)
fallbacks = Counter("mmserve_fallbacks", "How often a request went on to another choice of its chain.")
hedges = Counter(
    "mmserve_hedges", "Second attempts beside a slow first one: sent, and how they ended.", ("what",)
)
_breakers = Gauge(
    "mmserve_breaker_open", "1 while a deployment's circuit breaker lets nothing pass, 0.5 half open.",
    ("deployment",),
)  # fmt: skip
_errors = Gauge(
    "mmserve_latency_prediction_error",
    "Moving average of |predicted - measured| / measured; what is ttft or tpot.",
    ("deployment", "what"),
)
_affinity = Counter(
    "mmserve_affinity",
    "Requests that preferred a replica; it was kept, or another one took it.",
    ("outcome",),
)
affinity_kept, affinity_moved = _affinity.labels("kept"), _affinity.labels("moved")
revision = Gauge("mmserve_config_revision", "The configuration revision that this process runs.")

CLIENT_GONE = 499


@lru_cache(maxsize=4096)
def _request_counter(endpoint: str, status: int, model: str) -> Counter:
    return _requests.labels(endpoint, str(status), model)


@lru_cache(maxsize=1024)
def _timers(model: str) -> tuple[Histogram, Histogram, Histogram]:
    return _ttft.labels(model), _tpot.labels(model), _e2e.labels(model)


def count(endpoint: str, status: int, served_id: str = "", times: int = 1) -> None:
    """Answered requests; only served ids become labels, never what a client made up."""
    _request_counter(endpoint, status, served_id).inc(times)


def breaker(deployment: str, state: State) -> None:
    """A circuit breaker's state."""
    _breakers.labels(deployment).set({State.CLOSED: 0.0, State.HALF_OPEN: 0.5, State.OPEN: 1.0}[state])


def prediction_errors(deployment: str, ttft: float | None, tpot: float | None) -> None:
    """How far latency predictions are off; None: nothing was predicted yet."""
    for what, error in (("ttft", ttft), ("tpot", tpot)):
        if error is not None:
            _errors.labels(deployment, what).set(error)


def observe(flight: Flight, now: float) -> None:
    """The times of one completed request."""
    ttft, tpot, e2e = _timers(flight.deployment.served_id)
    e2e.observe(now - flight.begun_at)
    if flight.first_token_at is not None:
        ttft.observe(flight.first_token_at - flight.begun_at)
        if flight.completion_tokens > 1:
            tpot.observe((now - flight.first_token_at) / (flight.completion_tokens - 1))
