"""The head of an experiment's page: its state, in five seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.urls import reverse
from django.utils import timezone

from registry.models import Event
from routing.actions import experiments as actions
from routing.admin.experiments_plot import percent, plot_of
from routing.core.statistics.metrics import METRICS, Metric
from routing.experiments.plan import plan_of
from routing.experiments.report import GuardrailReport, Report, intervals, report_of
from routing.experiments.watch import step_is_due, waits_for
from routing.models.experiments import LIVE, OPEN, Experiment, State

TIMELINE_EVENTS = 30
MAX_ASKED = 1e9
STATE_LABELS = {
    "draft": "default",
    "ramping": "info",
    "running": "info",
    "paused": "warning",
    "concluded": "success",
    "shipped": "success",
    "rolled_back": "danger",
}
# What the page's head is coloured by: a verdict's tone.
TONES = {
    "mismatch": "bad",
    "guardrail": "bad",
    "worse": "bad",
    "better": "good",
    "same": "calm",
    "open": "calm",
    "early": "calm",
    "draft": "calm",
}
HEADLINES = {
    "mismatch": "Do not trust this: the arms' sizes are wrong",
    "guardrail": "Stop: a guardrail is broken",
    "worse": "The control is better",
    "better": "{leader} wins",
    "same": "No difference worth knowing of",
    "open": "No winner yet",
    "early": "Too early to say",
    "draft": "Draft: nothing is served by it yet",
}
ENDED = {
    State.ROLLED_BACK: "Rolled back",
    State.CONCLUDED: "Concluded",
    State.SHIPPED: "Shipped: {winner}",
    State.PAUSED: "Paused: nobody is in it",
}
# What the calculator on a draft's page asks for.
ASKED = (
    ("baseline", "Mean of the control"),
    ("deviation", "Standard deviation"),
    ("requests_per_day", "Requests a day"),
)


def planned(row: Experiment, given: Mapping[str, str]) -> dict[str, Any]:
    """The calculator, with what was typed into it."""
    asked, error = {}, ""
    for name, label in ASKED:
        text = given.get(name, "").strip()
        try:
            value = float(text) if text else None
        except ValueError:
            value = -1.0
        if value is not None and not 0 < value < MAX_ASKED:
            error = f"{label}: {text[:20]!r} is no number above 0."
            continue
        asked[name] = value
    return {
        "plan": plan_of(row, **asked),
        "plan_error": error,
        "asked": [(name, label, given.get(name, "")[:20]) for name, label in ASKED],
    }


def panel_of(row: Experiment, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What templates/admin/experiments/panel.html shows."""
    report = report_of(row)
    now = timezone.now()
    arms = list(row.arms.all())
    steps = actions.exposures(row, arms) if arms else []
    ended = row.state not in (*LIVE, State.DRAFT)
    headline = ENDED[State(row.state)] if ended else HEADLINES[report.verdict]
    tone = TONES[report.verdict]
    if row.state == State.ROLLED_BACK:
        tone = "bad"
    elif row.state == State.SHIPPED:
        tone = "good"
    return {
        "tone": tone,
        "headline": headline.format(leader=report.leader, winner=row.winner.name if row.winner else ""),
        "words": row.state_reason if row.state == State.ROLLED_BACK else report.words,
        "state": row.state,
        "state_label": STATE_LABELS[row.state],
        "mismatch": report.mismatch.broken,
        "mismatch_p": f"{report.mismatch.p:.1g}",
        "state_words": row.state.replace("_", " "),
        "chance": _chance(report),
        "leader": report.leader,
        "days_left": _days(report),
        "exposure": f"{row.exposure:.0%}" if row.state in LIVE else "0%",
        "units": report.distinct_units,
        "unit": row.unit,
        "requests": sum(one.requests for one in report.arms),
        "holdout": report.holdout_requests,
        "steps": [
            {
                "percent": f"{step:.0%}" if step >= 0.1 else f"{step:.1%}".replace(".0%", "%"),
                "done": row.state in (*OPEN,) and place < row.ramp_step,
                "now": row.state in OPEN and place == row.ramp_step,
            }
            for place, step in enumerate(steps)
        ],
        "next": _next(report, now),
        "arms": _arm_rows(report),
        "primary": report.primary,
        "smallest": f"{row.smallest_effect:.0%}"
        if row.smallest_effect >= 0.01
        else f"{row.smallest_effect:.1%}",
        "plot": plot_of(report),
        "guardrails": [_guardrail(one) for one in report.guardrails],
        **(planned(row, given or {}) if row.state == State.DRAFT else {}),
        "events": Event.objects.filter(subject=row.subject)[:TIMELINE_EVENTS],
        "report_url": f"/v1/routing/experiments/{row.pk}/report",
        "changelist": reverse("admin:routing_experiment_changelist"),
    }


def in_unit(metric: Metric, value: float | None) -> str:
    """A metric's value as a person reads it."""
    if value is None:
        return "–"
    if metric.proportion or metric.name == "rating":
        return f"{value:.2%}"
    if metric.unit == "s":
        return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"
    if metric.unit == "$":
        return f"${value:,.6f}"
    return f"{value:,.1f}"


def _arm_rows(report: Report) -> list[dict[str, Any]]:
    rows = []
    for one, value, low, high in intervals(report, report.primary):
        chance = report.comparisons.get(one.arm.name, {}).get(report.primary.name)
        rows.append(
            {
                "name": one.arm.name,
                "control": one.arm.is_control,
                "version": one.arm.served_id,
                "share": f"{one.share:.0%}",
                "requests": one.requests,
                "units": one.units,
                "value": in_unit(report.primary, value),
                "range": f"{in_unit(report.primary, low)} to {in_unit(report.primary, high)}"
                if low is not None
                else "",
                "errors": in_unit(METRICS["error_rate"], _share(one.totals.sums)),
                "leads": one.arm.name == report.leader and report.verdict == "better",
                "chance": None if chance is None else chance.chance_better,
            }
        )
    return rows


def _share(sums: Any) -> float | None:
    requests = float(sums[0].sum())
    return float(sums[1].sum()) / requests if requests else None


def _guardrail(one: GuardrailReport) -> dict[str, Any]:
    label = {
        "holds": "success",
        "open": "default",
        "early": "default",
        "tight": "warning",
        "broken": "danger",
    }
    words = {
        "holds": "holds",
        "open": "not proved yet",
        "early": "too early",
        "tight": "over its limit",
        "broken": "broken",
    }
    value = found = ""
    if one.value is not None and one.low is not None and one.high is not None:
        value, found = f"{one.value:+.1%}", f"{percent(one.low)} to {percent(one.high)}"
    return {
        "metric": one.metric.title,
        "arm": one.arm,
        "limit": f"{one.limit:.0%}",
        "state": words[one.state],
        "label": label[one.state],
        "value": value or "–",
        "range": found,
    }


def _chance(report: Report) -> str:
    if report.mismatch.broken:
        return "–"
    known = [
        found[report.primary.name].chance_better
        for found in report.comparisons.values()
        if found[report.primary.name].chance_better is not None
    ]
    best = max((one for one in known if one is not None), default=None)
    if best is None:
        return "–"
    if best > 0.999:
        return "> 99.9%"
    return "< 0.1%" if best < 0.001 else f"{best:.1%}" if best > 0.99 or best < 0.01 else f"{best:.0%}"


def _days(report: Report) -> str:
    if report.days_left is None or report.verdict in ("better", "worse", "same", "mismatch", "guardrail"):
        return "–"
    if report.days_left > 365:
        return "over a year"
    return f"{report.days_left:.1f}" if report.days_left < 10 else f"{report.days_left:.0f}"


def _next(report: Report, now: Any) -> str:
    """What happens next, and why it waits."""
    row = report.experiment
    if row.state == State.RAMPING:
        if not step_is_due(row, now):
            assert row.step_at is not None, "a ramping experiment has begun a step"
            left = row.step_minutes - (now - row.step_at).total_seconds() / 60
            return f"The next step comes in {left:.0f} min, if the guardrails hold."
        waiting = waits_for(report)
        return f"The next step waits: {waiting}" if waiting else "The next step comes now."
    if row.state == State.RUNNING:
        return "At its full shares. It goes on until somebody ships, concludes or aborts it, or a guardrail breaks."
    return ""
