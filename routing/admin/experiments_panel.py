"""The head of an experiment's page: its state, in five seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis
from django.utils import timezone

from registry.models import Event, Model
from routing.actions import experiments as actions
from routing.admin.experiments_plot import percent, plot_of
from routing.connection import connection
from routing.core.records import shadow_key
from routing.core.statistics.metrics import METRICS, Metric
from routing.experiments.plan import plan_of
from routing.experiments.report import GuardrailReport, Report, intervals, report_of
from routing.experiments.watch import step_is_due, waits_for
from routing.models.experiments import LIVE, OPEN, Arm, Experiment, Exposure, Kind, State

TIMELINE_EVENTS = 30
LATEST = 1000  # requests that are looked at for fallbacks
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
    State.CONCLUDED: "Concluded: {winner} won",
    State.SHIPPED: "Shipped: {winner}",
    State.PAUSED: "Paused: nobody is in it",
}
# What happens next, in the states where it does not depend on the numbers.
NEXT = {
    State.DRAFT: "Start begins with the first step.",
    State.RUNNING: "At its full shares, until somebody ships, concludes or aborts it, or a guardrail breaks.",
    State.PAUSED: "Everybody gets what {target} means without it. Resume goes on at this step; nobody changes the arm.",
    State.CONCLUDED: "It is over. {target} means what it meant before: ship the winner to move it.",
    State.ROLLED_BACK: "It is over. Everybody gets what {target} means without it.",
    State.SHIPPED: "It is over: the alias moved to {winner}.",
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
    likeliest, chance = _chance(report)
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
        "headline": headline.format(leader=report.leader, winner=row.winner.name if row.winner else "nobody"),
        "words": row.state_reason if row.state == State.ROLLED_BACK else report.words,
        "state": row.state,
        "state_label": STATE_LABELS[row.state],
        "strange": _strange(row, arms),
        "mismatch": report.mismatch.broken,
        "mismatch_p": f"{report.mismatch.p:.1g}",
        "state_words": row.state.replace("_", " "),
        "chance": chance,
        "likeliest": likeliest,
        "days_left": _days(report),
        "units": report.distinct_units,
        "unit": row.unit,
        "requests": sum(one.requests for one in report.arms),
        "holdout": report.holdout_requests,
        "traffic": "Copied" if row.kind == Kind.SHADOW else "Traffic in it, all arms",
        "steps": [
            {
                "percent": _part(step),
                "done": row.state in OPEN and place < row.ramp_step,
                "now": row.state in LIVE and place == row.ramp_step,
                "held": row.state == State.PAUSED and place == row.ramp_step,
            }
            for place, step in enumerate(steps if row.state in (State.DRAFT, *OPEN) else [])
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
        "events": [_event(one) for one in Event.objects.filter(subject=row.subject)[:TIMELINE_EVENTS]],
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


def _strange(row: Experiment, arms: list[Arm]) -> str:
    """What may not be meant: what the target means is no arm, or the control is of another model than the target."""
    control = next((arm for arm in arms if arm.is_control), None)
    if row.state in (State.DRAFT, *OPEN) and control is not None:
        model = control.served_id.partition("@")[0]
        asked = row.target.partition("@")[0]
        if asked != model and Model.objects.filter(name=asked).exists():
            return (
                f"The control ({control.name}) is {control.served_id}, and clients ask for {row.target}: "
                "even those who get the control are served by another model than they named."
            )
    if row.state not in OPEN or row.alias is None:
        return ""
    means = row.alias.version.served_id
    if means in {arm.served_id for arm in arms}:
        return ""
    return f"{row.alias} means {means} now, which is no arm: it is what everybody outside of the experiment gets."


def _strayed(row: Experiment) -> dict[str, float]:
    """The part of each arm's latest requests that another version served: a fallback stays in its arm."""
    if row.kind == Kind.SHADOW:
        return {}  # its control is whoever is copied
    found = Exposure.objects.filter(experiment=row, phase=row.phase).order_by("-at")
    served: dict[str, list[str]] = {}
    for arm, served_id in found.values_list("arm", "served_id")[:LATEST]:
        served.setdefault(arm, []).append(served_id)
    own = {arm.name: arm.served_id for arm in row.arms.all()}
    return {
        name: sum(one not in ("", own[name]) for one in ids) / len(ids)
        for name, ids in served.items()
        if name in own
    }


def _part(step: float) -> str:
    """``2%``, ``2.5%``, ``100%``"""
    return f"{100 * step:.3g}%"


def _event(event: Event) -> dict[str, Any]:
    """A transition with the numbers that it was made by."""
    data, figures = event.data, []
    if "from" in data and "to" in data:
        figures.append(f"traffic {_part(data['from'])} → {_part(data['to'])}")
    if data.get("winner"):
        figures.append(f"winner {data['winner']}")
    if requests := data.get("requests"):
        figures.append(f"{sum(requests.values()):,} requests")
    for arm, found in (data.get("primary") or {}).items():
        if (value := found.get("relative")) is not None:
            low, high = percent(found["relative_low"]), percent(found["relative_high"])
            figures.append(f"{found['metric']} of {arm} {percent(value)} ({low} to {high})")
    return {
        "at": event.at,
        "kind": event.kind.removeprefix("experiment.").replace("_", " "),
        "actor": event.actor,
        "reason": event.reason,
        "figures": "; ".join(figures),
    }


def _arm_rows(report: Report) -> list[dict[str, Any]]:
    rows, strayed = [], _strayed(report.experiment)
    for one, value, low, high in intervals(report, report.primary):
        chance = report.comparisons.get(one.arm.name, {}).get(report.primary.name)
        rows.append(
            {
                "name": one.arm.name,
                "control": one.arm.is_control,
                "version": one.arm.served_id,
                "strayed": f"{strayed[one.arm.name]:.0%}" if strayed.get(one.arm.name) else "",
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


def _chance(report: Report) -> tuple[str, str]:
    """The arm that is likeliest to be better than the control, and how likely."""
    known = {
        arm: chance
        for arm, found in report.comparisons.items()
        if (chance := found[report.primary.name].chance_better) is not None
    }
    if report.mismatch.broken or not known:
        return "an arm", "–"
    arm = max(known, key=known.__getitem__)
    best = known[arm]
    if best > 0.999:
        return arm, "> 99.9%"
    words = "< 0.1%" if best < 0.001 else f"{best:.1%}" if best > 0.99 or best < 0.01 else f"{best:.0%}"
    return arm, words


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
        waiting = waits_for(report)
        if not step_is_due(row, now):
            assert row.step_at is not None, "a ramping experiment has begun a step"
            left = row.step_minutes - (now - row.step_at).total_seconds() / 60
            when = f"The next step comes in {left:.0f} min at the earliest, if the guardrails hold."
            return f"{when} It also waits: {waiting}" if waiting else when
        return f"The next step waits: {waiting}" if waiting else "The next step comes now."
    if row.state == State.RUNNING and row.kind == Kind.SHADOW:
        return f"Nobody waits for the copies. {_spent(row, now)}"
    winner = row.winner.served_id if row.winner else "a version that was deleted"
    return NEXT[State(row.state)].format(target=row.alias or row.target, winner=winner)


def _spent(row: Experiment, now: Any) -> str:
    """What of a shadow's budget its copies have taken today."""
    try:
        spent = int(connection().get(shadow_key(row.name, now.timestamp())) or 0)  # type: ignore[arg-type]
    except redis.RedisError:
        return f"They may take {row.shadow_tokens_per_day:,} tokens a day."
    return f"{spent:,} of {row.shadow_tokens_per_day:,} tokens are used today (UTC)."
