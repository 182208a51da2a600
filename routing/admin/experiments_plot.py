"""The picture of an experiment: each metric's difference with its interval on one relative scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from routing.core.statistics.compare import Comparison, harm
from routing.core.statistics.metrics import METRICS, Metric
from routing.experiments.report import GuardrailReport, Report

WIDTH, LABEL, ROW, TOP, BOTTOM, RIGHT = 900, 190, 34, 30, 26, 190
# Beyond this nothing is drawn to scale: an interval of ±300% says "not yet".
WIDEST = 1.5
GOOD, BAD, OPEN, MUTED = "#16a34a", "#dc2626", "#9810fa", "#9ca3af"


@dataclass(frozen=True, slots=True)
class Line:
    """One row: how much the arm differs from the control, relatively."""

    label: str
    metric: Metric
    value: float
    low: float
    high: float
    colour: str
    limit: float | None
    primary: bool


def plot_of(report: Report) -> dict[str, Any] | None:
    """What templates/admin/experiments/plot.html draws; None while there is nothing to see."""
    lines = _lines(report)
    if not lines:
        return None
    effect = report.experiment.smallest_effect
    # The primary metric and the limits are to scale; what is less certain is cut off.
    ends = [end for line in lines if line.primary for end in (line.low, line.high) if math.isfinite(end)]
    limits = [1.15 * line.limit for line in lines if line.limit is not None]
    reach = min(WIDEST, max([1.6 * effect, *(1.25 * abs(end) for end in ends), *limits]))
    left, right = LABEL, WIDTH - RIGHT

    def x(value: float) -> float:
        return round(left + (max(-reach, min(reach, value)) + reach) / (2 * reach) * (right - left), 1)

    rows = []
    for place, line in enumerate(lines):
        y = TOP + place * ROW + ROW / 2
        rows.append(
            {
                "label": line.label,
                "primary": line.primary,
                "y": y,
                "low": x(line.low),
                "high": x(line.high),
                "value": x(line.value),
                "width": round(max(1.0, x(line.high) - x(line.low)), 1),
                "colour": line.colour,
                "limit": None if line.limit is None else x(_signed(line.metric, line.limit)),
                "words": percent(line.value),
                "left": left,
                "right": right,
                "range": f"{percent(line.low)} to {percent(line.high)}",
                "cut_low": line.low < -reach,
                "cut_high": line.high > reach,
            }
        )
    bottom = TOP + len(lines) * ROW
    return {
        "rows": rows,
        "width": WIDTH,
        "height": bottom + BOTTOM,
        "top": TOP,
        "bottom": bottom,
        "zero": x(0),
        "band_low": x(-effect),
        "band_width": round(x(effect) - x(-effect), 1),
        "ticks": [(x(tick), f"{tick:+.0%}" if tick else "0") for tick in _ticks(reach)],
        "figures_x": right + 12,
        "left": left,
        "right": right,
        "effect": effect,
    }


def _lines(report: Report) -> list[Line]:
    limits = {(one.arm, one.metric.name): one for one in report.guardrails}
    several = len(report.treatments) > 1
    found = []
    for arm, comparisons in report.comparisons.items():
        guarded = [one.metric.name for one in report.guardrails if one.arm == arm]
        names = [report.primary.name, *(name for name in guarded if name != report.primary.name)]
        for name in names:
            one = comparisons[name]
            relative = one.relative
            guardrail = limits.get((arm, name))
            if guardrail is not None and name != report.primary.name:
                # As its own table says it: at the guardrails' level.
                relative = _turned_back(guardrail) or relative
            if relative is None:
                continue
            label = METRICS[name].title + (f" · {arm}" if several else "")
            colour = _colour(METRICS[name], one, guardrail.state if guardrail else "", report)
            limit = guardrail.limit if guardrail else None
            found.append(
                Line(label, METRICS[name], *relative, colour, limit, primary=name == report.primary.name)
            )
    return found


def _colour(metric: Metric, one: Comparison, state: str, report: Report) -> str:
    if state in ("broken", "tight"):
        return BAD
    worse = harm(metric, one)
    if worse is None or metric.lower_is_better is None:
        return OPEN
    if worse[2] < 0:
        return GOOD
    if worse[1] > 0:
        return BAD
    return OPEN if metric.name == report.primary.name else MUTED


def _turned_back(one: GuardrailReport) -> tuple[float, float, float] | None:
    """The difference as the metric has it, from how much worse it is."""
    if one.value is None or one.low is None or one.high is None or one.metric.lower_is_better is None:
        return None
    if one.metric.lower_is_better:
        return one.value, one.low, one.high
    return -one.value, -one.high, -one.low


def percent(value: float) -> str:
    """``-8.9%``, ``+182%``, ``+1,015%``"""
    return f"{value:+.1%}" if abs(value) < 0.1 else f"{value:+,.0%}"


def _signed(metric: Metric, limit: float) -> float:
    return -limit if metric.lower_is_better is False else limit


def _ticks(reach: float) -> list[float]:
    step = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if reach / size <= 4)
    count = int(reach / step)
    return [round(step * place, 4) for place in range(-count, count + 1)]
