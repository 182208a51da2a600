"""The calculator: how many days an experiment takes to find its smallest effect of interest."""

from __future__ import annotations

import math
from typing import Any

from routing.core.statistics.means import estimate
from routing.core.statistics.metrics import METRICS, Metric
from routing.core.statistics.planning import POWER, observations
from routing.core.statistics.totals import Totals
from routing.experiments.traffic import requests_per_day as measured_per_day
from routing.models.experiments import ArmTotals, Experiment


def plan_of(
    row: Experiment,
    *,
    requests_per_day: float | None = None,
    baseline: float | None = None,
    deviation: float | None = None,
) -> dict[str, Any]:
    """At the full shares. What is not given is taken from the traffic, and ``assumptions`` says what was."""
    metric = METRICS[row.primary_metric]
    assumptions = []
    if baseline is None:
        baseline, measured, source = _measured(row, metric)
        if source:
            assumptions.append(source)
        deviation = measured if deviation is None else deviation
    if requests_per_day is None:
        requests_per_day = measured_per_day(row)
        if requests_per_day is not None:
            assumptions.append(f"{requests_per_day:,.0f} requests a day, as in the last week.")
    if baseline is not None and deviation is None:
        if metric.proportion:
            deviation = math.sqrt(max(0.0, baseline * (1 - min(1.0, baseline))))
        else:
            deviation = baseline
            assumptions.append("A standard deviation as large as the mean: nothing was measured yet.")
    found: dict[str, Any] = {
        "metric": metric.name,
        "smallest_effect": row.smallest_effect,
        "baseline": baseline,
        "deviation": deviation,
        "requests_per_day": requests_per_day,
        "observations": None,
        "observations_for_one_look": None,
        "days": None,
        "assumptions": assumptions,
    }
    arms = list(row.arms.all())
    control = next((arm for arm in arms if arm.is_control), None)
    treatments = [arm for arm in arms if not arm.is_control]
    if not baseline or not deviation or control is None or not treatments:
        assumptions.append("Give a baseline: nothing like it was measured yet." if not baseline else "")
        found["assumptions"] = [text for text in assumptions if text]
        return found
    smallest = min(arm.weight for arm in treatments)
    total = sum(arm.weight for arm in arms)
    needed = observations(
        row.smallest_effect * abs(baseline),
        deviation**2,
        row.alpha / len(treatments),
        shares=(control.weight, smallest),
    )
    # Only a part of the traffic goes to these two arms.
    part = (control.weight + smallest) / total * (100 - row.holdout_percent) / 100
    part *= row.group_percent / 100 if row.group is not None else 1.0
    found["observations"] = math.ceil(needed.sequential / part)
    found["observations_for_one_look"] = math.ceil(needed.fixed / part)
    if requests_per_day:
        found["days"] = found["observations"] / requests_per_day
    assumptions.append(f"A chance of {POWER:.0%} to see a change of {row.smallest_effect:.1%} that is there.")
    return found


def _measured(row: Experiment, metric: Metric) -> tuple[float | None, float | None, str]:
    """Mean and deviation (clustering included) of the latest control on the same target."""
    rows = ArmTotals.objects.filter(
        experiment__target=row.target, experiment__arms__is_control=True, requests__gt=0
    ).filter(arm__in=[arm.name for arm in row.arms.all() if arm.is_control] or ["control"])
    for stored in rows.select_related("experiment").order_by("-updated_at")[:1]:
        totals = Totals.from_bytes(bytes(stored.data))
        found = estimate(totals.sums[metric.top], totals.sums[metric.bottom], proportion=metric.proportion)
        if math.isfinite(found.variance) and found.value:
            deviation = math.sqrt(float(found.variance * found.count))
            source = f"Mean and deviation as measured in {stored.experiment.name}."
            return float(found.value), deviation, source
    return None, None, ""
