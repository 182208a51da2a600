"""An experiment as its numbers stand: arms, comparisons with the control, guardrails, mismatch, and what to make of it.

The same report is the admin page's, REST's, the command's, and what the controller decides by.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, field
from typing import Any

from django.utils import timezone

from registry.models import Event
from routing.core.assignment import HOLDOUT
from routing.core.statistics import metrics as m
from routing.core.statistics.compare import Comparison, arm_interval, bonferroni, compare, harm
from routing.core.statistics.means import MIN_CLUSTERS, MIN_COUNT
from routing.core.statistics.metrics import METRICS, Metric
from routing.core.statistics.mismatch import Mismatch, mismatch
from routing.core.statistics.totals import Totals
from routing.core.statistics.units import UnitSample
from routing.models.experiments import LIVE, Arm, ArmTotals, Experiment, Kind, PhaseUnits

DAY_S = 86_400.0
# Share of the alpha of a guardrail: all guardrails of all arms together stop a sound experiment this often at most.
GUARDRAIL_ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """One arm's counts."""

    arm: Arm
    share: float
    requests: int
    step_requests: int  # of them, since the present step of the ramp began
    units: int  # distinct ones, in the sample
    totals: Totals = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailReport:
    """One guardrail of one arm. ``state``: early, holds (proved), open (not proved yet), tight, broken (proved)."""

    arm: str
    metric: Metric
    limit: float
    state: str
    value: float | None = None  # how much worse than the control, relatively
    low: float | None = None
    high: float | None = None

    @property
    def words(self) -> str:
        """``ttft_p95 is 14% worse, the limit is 10%``"""
        if self.value is None:
            return f"{self.metric.name}: too early to say"
        way = "worse" if self.value > 0 else "better"
        return (
            f"{self.metric.name} of {self.arm} is {abs(self.value):,.1%} {way}, the limit is {self.limit:.0%}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it. ``comparisons`` is by arm and metric."""

    experiment: Experiment
    control: ArmReport | None
    treatments: list[ArmReport]
    holdout_requests: int
    distinct_units: int
    comparisons: dict[str, dict[str, Comparison]]
    guardrails: list[GuardrailReport]
    mismatch: Mismatch
    days_left: float | None
    verdict: str  # one of VERDICTS
    words: str
    leader: str | None

    @property
    def arms(self) -> list[ArmReport]:
        """The control first."""
        return ([self.control] if self.control else []) + self.treatments

    @property
    def primary(self) -> Metric:
        """The metric that decides."""
        return METRICS[self.experiment.primary_metric]

    @property
    def broken(self) -> list[GuardrailReport]:
        """Guardrails that are proved to be broken."""
        return [one for one in self.guardrails if one.state == "broken"]

    @property
    def tight(self) -> list[GuardrailReport]:
        """Guardrails whose limit is passed, if not proved so: a ramp waits for them."""
        return [one for one in self.guardrails if one.state in ("broken", "tight")]

    def summary(self) -> dict[str, Any]:
        """The numbers that go into an event."""
        primary = {
            name: numbers(found[self.primary.name])
            for name, found in self.comparisons.items()
            if self.primary.name in found
        }
        return {
            "phase": self.experiment.phase,
            "exposure": self.experiment.exposure,
            "requests": {one.arm.name: one.requests for one in self.arms},
            "step_requests": {one.arm.name: one.step_requests for one in self.arms},
            "units": self.distinct_units,
            "metric": self.primary.name,
            "primary": primary,
            "guardrails": [guardrail_numbers(one) for one in self.guardrails],
            "mismatch_p": round(self.mismatch.p, 6),
            "verdict": self.verdict,
        }


NO_MISMATCH = Mismatch(0.0, 1.0, 0.0, broken=False)  # a shadow's pairs are whole
VERDICTS = {
    "draft": "Not begun.",
    "mismatch": "The arms do not have the units that their shares promise: no number of it can be trusted.",
    "guardrail": "A guardrail is broken.",
    "early": "Too early: an interval takes {count} observations and {clusters} clusters of units in each arm.",
    "open": "No difference is proved yet.",
    "better": "The treatment is better.",
    "worse": "The control is better.",
    "same": "No difference worth knowing of: the interval lies within the smallest effect.",
}


def report_of(experiment: Experiment, *, now: datetime.datetime | None = None) -> Report:
    """Read the present phase's totals and judge them."""
    now = now or timezone.now()
    stored = {
        row.arm: Totals.from_bytes(bytes(row.data))
        for row in ArmTotals.objects.filter(experiment=experiment, phase=experiment.phase)
    }
    units_row = PhaseUnits.objects.filter(experiment=experiment, phase=experiment.phase).first()
    sample = UnitSample.from_bytes(bytes(units_row.data)) if units_row else UnitSample()
    units = sample.counts()
    arms = list(experiment.arms.all())
    weights = sum(arm.weight for arm in arms) or 1
    reports = []
    for arm in arms:
        totals = stored.get(arm.name) or Totals()
        reports.append(
            ArmReport(
                arm=arm,
                share=arm.weight / weights,
                totals=totals,
                requests=totals.requests,
                step_requests=totals.requests - experiment.requests_before_step.get(arm.name, 0),
                units=units.get(arm.pk, 0),
            )
        )
    control = next((one for one in reports if one.arm.is_control), None)
    treatments = [one for one in reports if not one.arm.is_control]
    comparisons = _comparisons(experiment, control, treatments)
    guardrails = _guardrails(experiment, control, treatments)
    ratio = (
        NO_MISMATCH
        if experiment.kind == Kind.SHADOW
        else mismatch([one.units for one in reports], [one.share for one in reports])
    )
    verdict, words, leader = _verdict(experiment, comparisons, guardrails, ratio)
    holdout = stored.get("holdout")
    return Report(
        experiment=experiment,
        control=control,
        treatments=treatments,
        holdout_requests=holdout.requests if holdout else 0,
        distinct_units=units_row.distinct - round(units.get(HOLDOUT, 0)) if units_row else 0,
        comparisons=comparisons,
        guardrails=guardrails,
        mismatch=ratio,
        days_left=_days_left(experiment, comparisons, now),
        verdict=verdict,
        words=words,
        leader=leader,
    )


def paired(experiment: Experiment, treatments: list[ArmReport]) -> bool:
    """Whether control and treatment had the same requests: a shadow's copies all go to its only arm."""
    return experiment.kind == Kind.SHADOW and len(treatments) == 1


def intervals(
    report: Report, metric: Metric
) -> list[tuple[ArmReport, float | None, float | None, float | None]]:
    """Each arm's value with its own interval."""
    alpha = report.experiment.alpha
    return [(one, *arm_interval(metric, one.totals, alpha=alpha)) for one in report.arms]


def _comparisons(
    experiment: Experiment, control: ArmReport | None, treatments: list[ArmReport]
) -> dict[str, dict[str, Comparison]]:
    if control is None:
        return {}
    alpha = bonferroni(experiment.alpha, len(treatments))
    return {
        one.arm.name: {
            name: compare(
                metric,
                control.totals,
                one.totals,
                alpha=alpha,
                effect=experiment.smallest_effect,
                paired=paired(experiment, treatments),
            )
            for name, metric in METRICS.items()
        }
        for one in treatments
    }


def _guardrails(
    experiment: Experiment, control: ArmReport | None, treatments: list[ArmReport]
) -> list[GuardrailReport]:
    if control is None:
        return []
    alpha = bonferroni(GUARDRAIL_ALPHA, len(experiment.guardrails) * len(treatments))
    found = []
    for guardrail in experiment.guardrails:
        metric, limit = METRICS[guardrail["metric"]], float(guardrail["limit"])
        for one in treatments:
            compared = compare(
                metric,
                control.totals,
                one.totals,
                alpha=alpha,
                effect=limit,
                limit=limit,
                paired=paired(experiment, treatments),
            )
            worse = harm(metric, compared)
            if worse is None:
                found.append(GuardrailReport(arm=one.arm.name, metric=metric, limit=limit, state="early"))
                continue
            value, low, high = worse
            if low > limit:
                state = "broken"
            elif value > limit:
                state = "tight"
            else:
                state = "holds" if high <= limit else "open"
            found.append(
                GuardrailReport(
                    arm=one.arm.name, metric=metric, limit=limit, state=state, value=value, low=low, high=high
                )
            )
    return found


def _verdict(
    experiment: Experiment,
    comparisons: dict[str, dict[str, Comparison]],
    guardrails: list[GuardrailReport],
    ratio: Mismatch,
) -> tuple[str, str, str | None]:
    """In the order of what a person must know first."""
    if experiment.started_at is None:
        return "draft", VERDICTS["draft"], None
    if ratio.broken:
        return "mismatch", VERDICTS["mismatch"], None
    broken = [one for one in guardrails if one.state == "broken"]
    if broken:
        return "guardrail", f"{VERDICTS['guardrail'][:-1]}: {broken[0].words}.", None
    metric = METRICS[experiment.primary_metric]
    primary = {name: found[metric.name] for name, found in comparisons.items()}
    known = {name: worse for name, one in primary.items() if (worse := harm(metric, one)) is not None}
    if not known:
        return "early", VERDICTS["early"].format(count=MIN_COUNT, clusters=MIN_CLUSTERS), None
    best = min(known, key=lambda name: known[name][0])
    value, low, high = known[best]
    if metric.lower_is_better is None:
        changed = primary[best].low, primary[best].high
        proved = changed[0] is not None and changed[1] is not None and not changed[0] <= 0 <= changed[1]
        if proved:
            return (
                "open",
                f"{best} changes {metric.title.lower()} by {value:.1%}; neither way is better.",
                best,
            )
    if high < 0 and metric.lower_is_better is not None:
        return (
            "better",
            f"{best} is better: {metric.title.lower()} by {-value:.1%} ({-high:.1%} to {-low:.1%}).",
            best,
        )
    if all(one[1] > 0 for one in known.values()) and metric.lower_is_better is not None:
        return "worse", f"The control is better: {best} is {value:.1%} worse ({low:.1%} to {high:.1%}).", None
    if all(max(abs(one[1]), abs(one[2])) <= experiment.smallest_effect for one in known.values()):
        return "same", VERDICTS["same"], best
    way = f"{metric.title.lower()} of {best} is {abs(value):.1%} {'worse' if value > 0 else 'better'} so far"
    if metric.lower_is_better is None:
        way = f"{metric.title.lower()} of {best} differs by {value:.1%} so far"
    return "open", f"{VERDICTS['open'][:-1]}: {way}.", best


def _days_left(
    experiment: Experiment, comparisons: dict[str, dict[str, Comparison]], now: datetime.datetime
) -> float | None:
    """Until the smallest effect would be found, mostly, at the pace so far; None while that cannot be said."""
    if experiment.state not in LIVE or experiment.started_at is None:
        return None
    since = experiment.started_at
    if experiment.phase > 1:  # what was measured before the shares changed does not count
        changes = Event.objects.filter(subject=experiment.subject, kind="experiment.shares")
        since = changes.order_by("-pk").values_list("at", flat=True).first() or since
    elapsed = (now - since).total_seconds() / DAY_S
    left = []
    for found in comparisons.values():
        one = found[experiment.primary_metric]
        if one.needed is None or not one.information or elapsed <= 0:
            return None
        left.append(max(0.0, one.needed - one.information) / (one.information / elapsed))
    return max(left) if left else None


def numbers(one: Comparison) -> dict[str, Any]:
    """A comparison as JSON."""
    relative = one.relative
    return {
        "metric": one.metric,
        "control": _rounded(one.control),
        "treatment": _rounded(one.treatment),
        "difference": _rounded(one.difference),
        "low": _rounded(one.low),
        "high": _rounded(one.high),
        "relative": _rounded(relative[0]) if relative else None,
        "relative_low": _rounded(relative[1]) if relative else None,
        "relative_high": _rounded(relative[2]) if relative else None,
        "observations": one.count,
        "p": _rounded(one.p),
        "chance_better": _rounded(one.chance_better),
    }


def guardrail_numbers(one: GuardrailReport) -> dict[str, Any]:
    """A guardrail as JSON."""
    return {
        "arm": one.arm,
        "metric": one.metric.name,
        "limit": one.limit,
        "state": one.state,
        "worse_by": _rounded(one.value),
        "low": _rounded(one.low),
        "high": _rounded(one.high),
    }


def as_json(report: Report) -> dict[str, Any]:
    """The report as REST and the command give it."""
    experiment = report.experiment
    return {
        "experiment": experiment.name,
        "state": experiment.state,
        "phase": experiment.phase,
        "exposure": experiment.exposure,
        "verdict": report.verdict,
        "words": report.words,
        "leader": report.leader,
        "days_left": _rounded(report.days_left),
        "units": report.distinct_units,
        "holdout_requests": report.holdout_requests,
        "arms": [
            {
                "name": one.arm.name,
                "version": one.arm.served_id,
                "control": one.arm.is_control,
                "share": _rounded(one.share),
                "requests": one.requests,
                "step_requests": one.step_requests,
                "sampled_units": one.units,
                "errors": int(one.totals.sums[m.ERRORS].sum()),
            }
            for one in report.arms
        ],
        "primary_metric": report.primary.name,
        "smallest_effect": experiment.smallest_effect,
        "alpha": experiment.alpha,
        "comparisons": {
            arm: [numbers(one) for one in found.values() if one.count]
            for arm, found in report.comparisons.items()
        },
        "guardrails": [guardrail_numbers(one) for one in report.guardrails],
        "mismatch": {
            "chi_square": _rounded(report.mismatch.chi_square),
            "p": _rounded(report.mismatch.p),
            "log_evidence": _rounded(report.mismatch.log_evidence),
            "broken": report.mismatch.broken,
        },
    }


def _rounded(value: float | None) -> float | None:
    """Six significant digits; NaN and infinity are no JSON."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
