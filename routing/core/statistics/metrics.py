"""What an experiment measures. Each mean is a ratio of two sums; latencies have quantiles as well."""

from __future__ import annotations

from dataclasses import dataclass

REQUESTS, ERRORS, SUCCESSES, COST, OUTPUT_TOKENS, REFUSALS, TTFT_N, TTFT_S, TPOT_N, TPOT_S = range(10)
E2E_S, RATINGS, RATING, SCORES, SCORE = range(10, 15)
COLUMNS = 15
TTFT, TPOT, E2E = range(3)
HISTOGRAMS = 3


@dataclass(frozen=True, slots=True)
class Metric:
    """``top`` over ``bottom`` of the columns; a quantile's ``histogram`` and ``level`` instead."""

    name: str
    title: str
    unit: str  # "" for a proportion, shown in percent
    lower_is_better: bool | None = True
    top: int = REQUESTS
    bottom: int = REQUESTS
    proportion: bool = False
    histogram: int | None = None
    level: float = 0.5


def _latency(name: str, title: str, histogram: int, top: int, bottom: int) -> list[Metric]:
    found = [Metric(name, title, "s", top=top, bottom=bottom)]
    for percent in (50, 95, 99):
        quantile = Metric(
            f"{name}_p{percent}", f"{title} p{percent}", "s", histogram=histogram, level=percent / 100
        )
        found.append(quantile)
    return found


_ALL = (
    Metric("error_rate", "Error rate", "", top=ERRORS, bottom=REQUESTS, proportion=True),
    *_latency("ttft", "TTFT", TTFT, TTFT_S, TTFT_N),
    *_latency("tpot", "TPOT", TPOT, TPOT_S, TPOT_N),
    *_latency("e2e", "End to end", E2E, E2E_S, SUCCESSES),
    Metric("cost", "Cost per success", "$", top=COST, bottom=SUCCESSES),
    Metric("output_tokens", "Output tokens", "tokens", None, top=OUTPUT_TOKENS, bottom=SUCCESSES),
    Metric("refusals", "Refusals", "", top=REFUSALS, bottom=SUCCESSES, proportion=True),
    Metric("rating", "Rating", "", lower_is_better=False, top=RATING, bottom=RATINGS),
    Metric("score", "Score", "points", lower_is_better=False, top=SCORE, bottom=SCORES),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
