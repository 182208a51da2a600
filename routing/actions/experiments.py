"""Experiments: write, start, ramp, pause, conclude, roll back, ship. Every step is an event with its numbers."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from mmserve.errors import Conflict, InvalidRequest, ModelNotFound, NotFound
from registry.actions import promote
from registry.actions.editing import check_editable
from registry.lookup import find, find_version
from registry.models import Alias, Model, ModelVersion, VersionState
from registry.revision import bump
from registry.saving import save_checked
from routing.core.assignment import BUCKETS, Deal, deal, exposed, free_slice
from routing.core.statistics.metrics import METRICS
from routing.experiments.report import Report, report_of
from routing.models import Route
from routing.models.experiments import LIVE, OPEN, Arm, ExclusionGroup, Experiment, Kind, State

# What may follow what. ``draft`` may be edited freely; the last three are for ever.
TRANSITIONS: dict[str, frozenset[str]] = {
    State.DRAFT: frozenset({State.RAMPING, State.RUNNING}),
    State.RAMPING: frozenset(
        {State.RAMPING, State.RUNNING, State.PAUSED, State.CONCLUDED, State.ROLLED_BACK, State.SHIPPED}
    ),
    State.RUNNING: frozenset(
        {State.RUNNING, State.PAUSED, State.CONCLUDED, State.ROLLED_BACK, State.SHIPPED}
    ),
    State.PAUSED: frozenset(
        {State.RAMPING, State.RUNNING, State.CONCLUDED, State.ROLLED_BACK, State.SHIPPED}
    ),
    State.CONCLUDED: frozenset({State.SHIPPED}),
    State.ROLLED_BACK: frozenset(),
    State.SHIPPED: frozenset(),
}
# Fields of a draft, and those that stay open while it runs: nothing that the judgement depends on.
FIELDS = (
    "kind", "shadow_percent", "shadow_tokens_per_day",
    "hypothesis", "target", "unit", "filters", "holdout_percent", "group", "group_percent", "primary_metric",
    "smallest_effect", "alpha", "score_name", "guardrails", "ramp", "step_minutes", "step_requests",
)  # fmt: skip
EDITABLE = frozenset(FIELDS)
EDITABLE_LATER = frozenset({"hypothesis", "step_minutes", "step_requests"})
MAX_ARMS = 10
MAX_LIVE = 500
BUCKETS_PER_PERCENT = BUCKETS // 100


@transaction.atomic
def create_experiment(
    name: str, arms: Sequence[Mapping[str, Any]], *, actor: str, reason: str = "", **fields: Any
) -> Experiment:
    """A draft. ``arms`` are ``{"name", "version", "weight", "is_control"}``, exactly one of them the control."""
    check_editable(fields, EDITABLE)
    row = Experiment(name=name, salt=secrets.randbits(63), **fields)
    _check(row)
    save_checked(row, unique=f"There is an experiment {name!r} already.")
    _set_arms(row, arms)
    bump("experiment.created", row.subject, actor, reason, _plain({**fields, "arms": _arms_of(row)}))
    return row


@transaction.atomic
def update_experiment(
    row: Experiment,
    *,
    actor: str,
    reason: str = "",
    arms: Sequence[Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Experiment:
    """Change a draft. Once it runs, only what no result depends on; the shares by :func:`change_shares`."""
    check_editable(changes, EDITABLE)
    changed = {field: value for field, value in changes.items() if getattr(row, field) != value}
    if row.state != State.DRAFT:
        late = sorted(set(changed) - EDITABLE_LATER)
        if late or arms is not None:
            raise Conflict(
                f"{row.name} is {row.state}: its {late[0] if late else 'arms'} cannot change any more; "
                f"only {', '.join(sorted(EDITABLE_LATER))} can.",
                param=late[0] if late else "arms",
            )
    for field, value in changed.items():
        setattr(row, field, value)
    _check(row)
    _claim(row)
    save_checked(row, unique=f"There is an experiment {row.name!r} already.")
    if arms is not None:
        _set_arms(row, arms)
    if changed or arms is not None:
        data = {**changed, **({"arms": _arms_of(row)} if arms is not None else {})}
        bump("experiment.updated", row.subject, actor, reason, _plain(data))
    return row


@transaction.atomic
def delete_experiment(row: Experiment, *, actor: str, reason: str = "") -> None:
    """Delete it with what was measured; refused while it is open. Its events stay."""
    if row.state in OPEN:
        raise Conflict(f"{row.name} is {row.state}; conclude it or roll it back first.")
    _claim(row)
    subject = row.subject
    row.delete()
    bump("experiment.deleted", subject, actor, reason)


@transaction.atomic
def start_experiment(row: Experiment, *, actor: str, reason: str = "") -> Experiment:
    """Begin: at the first step of its ramp, or at its full shares where it has none."""
    if row.state != State.DRAFT:
        raise Conflict(f"{row.name} is {row.state}, not a draft.")
    arms = list(row.arms.select_related("version__model"))
    if len(arms) < 2 or sum(arm.is_control for arm in arms) != 1:
        raise Conflict(f"{row.name} needs at least two arms, one of them the control.", param="arms")
    for arm in arms:
        if arm.version is None or arm.version.state != VersionState.READY:
            state = arm.version.state if arm.version else "deleted"
            raise Conflict(f"{arm.served_id} of the arm {arm.name} is {state}, not ready.", param="arms")
    if Experiment.objects.filter(state__in=LIVE).count() >= MAX_LIVE:
        raise Conflict(f"{MAX_LIVE} experiments run already.")
    row.alias = _alias_of(row.target)
    _take_slice(row)
    now = timezone.now()
    row.started_at = row.step_at = now
    row.ramp_step = 0
    row.exposure = exposures(row, arms)[0]
    row.deal = _deal(row, arms)
    to = State.RUNNING if row.exposure >= 1 or row.kind == Kind.SHADOW else State.RAMPING
    data = {"arms": _arms_of(row), "target": row.target}
    return _only_one(_move(row, to, "experiment.started", actor, reason, data))


@transaction.atomic
def ramp_experiment(
    row: Experiment, *, actor: str, reason: str = "", report: Report | None = None
) -> Experiment:
    """The next step of the ramp; at its end the experiment runs at its full shares."""
    if row.state != State.RAMPING:
        raise Conflict(f"{row.name} is {row.state}; only a ramping experiment has a next step.")
    report = report or report_of(row)
    if report.broken:
        raise Conflict(f"{row.name} is not ramped: {report.broken[0].words}.")
    if report.mismatch.broken:
        raise Conflict(f"{row.name} is not ramped: its arms do not have the units that their shares promise.")
    arms = list(row.arms.all())
    steps = exposures(row, arms)
    before = row.exposure
    # Not just the next one: other shares than at the last step may have made it smaller than what there is.
    row.ramp_step = next(place for place, step in enumerate(steps) if step > before)
    row.exposure = steps[row.ramp_step]
    summary = report.summary()
    row.step_at = timezone.now()
    row.requests_before_step = {one.arm.name: one.requests for one in report.arms}
    row.deal = _deal(row, arms)
    to = State.RUNNING if row.exposure >= 1 else State.RAMPING
    data = {**summary, "from": before, "to": row.exposure}
    return _move(row, to, "experiment.ramped", actor, reason, data)


@transaction.atomic
def change_shares(row: Experiment, weights: Mapping[str, int], *, actor: str, reason: str = "") -> Experiment:
    """Another ratio between the arms. As few units as possible move, and the measuring begins anew."""
    if row.state not in OPEN:
        raise Conflict(
            f"{row.name} is {row.state}; a draft's arms are edited, and an ended one has no shares."
        )
    arms = list(row.arms.all())
    unknown = set(weights) - {arm.name for arm in arms}
    if unknown:
        raise InvalidRequest(f"{row.name} has no arm {sorted(unknown)[0]!r}", param="weights")
    summary = report_of(row).summary()
    for arm in arms:
        arm.weight = weights.get(arm.name, arm.weight)
        save_checked(arm, unique=f"Somebody else changed {arm} just now.")
    row.phase += 1
    row.deal = _deal(row, arms)
    row.step_at = timezone.now()
    row.requests_before_step = {}
    data = {**summary, "arms": _arms_of(row), "new_phase": row.phase}
    return _move(row, row.state, "experiment.shares", actor, reason, data, same=True)


@transaction.atomic
def pause_experiment(row: Experiment, *, actor: str, reason: str = "") -> Experiment:
    """Everybody gets what the id means without it; the units keep their arms for later."""
    before = row.state
    summary = report_of(row).summary()
    row.paused_from = before
    return _move(row, State.PAUSED, "experiment.paused", actor, reason, {**summary, "from": before})


@transaction.atomic
def resume_experiment(row: Experiment, *, actor: str, reason: str = "") -> Experiment:
    """Go on where it was paused."""
    if row.state != State.PAUSED:
        raise Conflict(f"{row.name} is {row.state}, not paused.")
    row.step_at = timezone.now()
    to, row.paused_from = row.paused_from, ""
    return _only_one(_move(row, to, "experiment.resumed", actor, reason, report_of(row).summary()))


@transaction.atomic
def conclude_experiment(
    row: Experiment, *, actor: str, winner: str | None = None, reason: str = ""
) -> Experiment:
    """End it, naming the arm that won or none; nothing moves until it is shipped."""
    row.winner = _arm(row, winner) if winner else None
    data = {**report_of(row).summary(), "winner": winner}
    return _end(row, State.CONCLUDED, "experiment.concluded", actor, reason, data)


@transaction.atomic
def roll_back_experiment(
    row: Experiment, *, actor: str, reason: str = "", report: Report | None = None
) -> Experiment:
    """Abort: everybody gets what the id means without it, for good."""
    data = (report or report_of(row)).summary()
    return _end(row, State.ROLLED_BACK, "experiment.rolled_back", actor, reason, data)


@transaction.atomic
def ship_experiment(
    row: Experiment, *, actor: str, winner: str | None = None, alias: str | None = None, reason: str = ""
) -> Experiment:
    """Make the winner what the alias means, and end the experiment.

    ``alias`` is ``name@alias`` or a bare name; the experiment's own target, if it is one.
    """
    arm = _arm(row, winner) if winner else row.winner
    if arm is None:
        raise InvalidRequest(f"{row.name} has no winner yet: name one of its arms.", param="winner")
    if State.SHIPPED not in TRANSITIONS[row.state]:
        raise Conflict(f"{row.name} is {row.state}; it cannot be shipped.")
    if arm.version is None:
        raise Conflict(f"{arm.served_id} was deleted.", param="winner")
    goes = _alias_of(alias) if alias else row.alias
    if goes is None:
        raise InvalidRequest(
            f"{row.target!r} is no alias: name the one that shall mean {arm.served_id}.", param="alias"
        )
    if goes.model_id != arm.version.model_id:
        raise Conflict(
            f"{goes} is an alias of {goes.model.name}; {arm.served_id} is another model's version.",
            param="alias",
        )
    data = {**report_of(row).summary(), "winner": arm.name, "alias": str(goes), "version": arm.served_id}
    row.winner = arm
    ended = _end(row, State.SHIPPED, "experiment.shipped", actor, reason, data)
    why = reason or f"{arm.name} won the experiment {row.name}"
    promote(arm.version, actor=actor, alias=goes.name, expected_revision=goes.revision, reason=why)
    return ended


@transaction.atomic
def create_group(name: str, unit: str, *, actor: str, reason: str = "") -> ExclusionGroup:
    """A layer of buckets that experiments divide among themselves."""
    group = ExclusionGroup(name=name, unit=unit, salt=secrets.randbits(63))
    save_checked(group, unique=f"There is an exclusion group {name!r} already.")
    bump("exclusion_group.created", f"exclusion_group:{name}", actor, reason, {"unit": unit})
    return group


@transaction.atomic
def delete_group(group: ExclusionGroup, *, actor: str, reason: str = "") -> None:
    """Delete a group that no experiment names."""
    names = list(group.experiments.values_list("name", flat=True)[:5])
    if names:
        raise Conflict(f"{group} is the exclusion group of {', '.join(names)}.")
    name = group.name
    group.delete()
    bump("exclusion_group.deleted", f"exclusion_group:{name}", actor, reason)


def refuse_to_retire(version: ModelVersion, **_: Any) -> None:
    """Receiver of registry's `version_retiring`."""
    arm = Arm.objects.filter(version=version, experiment__state__in=OPEN).select_related("experiment").first()
    if arm is not None:
        raise Conflict(f"{version.served_id} is the arm {arm.name} of {arm.experiment}, which is not over.")


def exposures(row: Experiment, arms: Sequence[Arm]) -> list[float]:
    """The part of the traffic that is in the experiment at each step; the last is all of it.

    A step is the largest treatment's percentage of the traffic. The arms' ratio is the same at every step, so
    that no step compares one time of day with another, and a unit enters an arm but never changes it.
    """
    if row.kind == Kind.SHADOW:
        return [row.shadow_percent / 100]
    total = sum(arm.weight for arm in arms)
    largest = max((arm.weight for arm in arms if not arm.is_control), default=total) / total
    steps = [min(1.0, step / 100 / largest) for step in row.ramp]
    found = [step for place, step in enumerate(steps) if step < 1 and step not in steps[:place]]
    return [*found, 1.0]


def find_experiment(name: str) -> Experiment:
    """By its name."""
    row = Experiment.objects.select_related("group", "alias__model", "winner").filter(name=name).first()
    if row is None:
        raise NotFound(f"There is no experiment {name[:60]!r}.", param="experiment")
    return row


def _move(
    row: Experiment, to: str, kind: str, actor: str, reason: str, data: dict[str, Any], *, same: bool = False
) -> Experiment:
    """Compare-and-set on state and revision; the event has the numbers."""
    before = Experiment.objects.filter(pk=row.pk).values_list("state", flat=True).first()
    if before is None:
        raise NotFound(f"The experiment {row.name} was deleted.", param="experiment")
    if to not in TRANSITIONS[before] and not same:
        raise Conflict(f"{row.name} is {before}; from there it cannot become {to}.")
    row.state = State(to)
    row.state_reason = reason
    _claim(row)
    row.save()
    bump(kind, row.subject, actor, reason, {**_plain(data), "state": to})
    return row


def _claim(row: Experiment) -> None:
    """Take the next revision of the row, or learn that somebody else did."""
    taken = Experiment.objects.filter(pk=row.pk, revision=row.revision).update(revision=F("revision") + 1)
    if row.pk and not taken:
        now = Experiment.objects.filter(pk=row.pk).values_list("state", "revision").first()
        found = f"{now[0]} at revision {now[1]}" if now else "deleted"
        raise Conflict(f"Somebody else changed {row.name} first: it is {found}, not {row.revision}.")
    row.revision += 1


def _end(row: Experiment, to: str, kind: str, actor: str, reason: str, data: dict[str, Any]) -> Experiment:
    row.ended_at = row.ended_at or timezone.now()
    row.exposure = 0.0
    row.group_low = row.group_high = None
    return _move(row, to, kind, actor, reason, data)


def _arm(row: Experiment, name: str) -> Arm:
    arm = row.arms.select_related("version__model").filter(name=name).first()
    if arm is None:
        known = ", ".join(row.arms.values_list("name", flat=True))
        raise InvalidRequest(f"{row.name} has no arm {name[:60]!r}; it has {known}", param="winner")
    return arm


def _set_arms(row: Experiment, arms: Sequence[Mapping[str, Any]]) -> None:
    if len(arms) > MAX_ARMS:
        raise InvalidRequest(f"at most {MAX_ARMS} arms", param="arms")
    row.arms.all().delete()
    if sum(bool(arm.get("is_control")) for arm in arms) > 1:
        raise InvalidRequest("only one arm is the control", param="arms")
    for arm in arms:
        version = arm["version"]
        if not isinstance(version, ModelVersion):
            try:
                version = find_version(str(version))
            except ModelNotFound as error:
                raise InvalidRequest(error.message, param="arms") from error
        made = Arm(
            experiment=row,
            name=arm["name"],
            version=version,
            served_id=version.served_id,
            weight=arm.get("weight", 50),
            is_control=bool(arm.get("is_control")),
        )
        try:
            save_checked(made, unique=f"{row.name} has two arms {made.name!r}.")
        except InvalidRequest as error:
            raise InvalidRequest(f"arm {str(made.name)[:60]!r}: {error.message}", param="arms") from error


def _check(row: Experiment) -> None:
    """What a field alone cannot know."""
    metric = METRICS.get(row.primary_metric)
    if metric is not None and metric.histogram is not None:
        raise InvalidRequest(
            f"{metric.name} is a quantile: it may be a guardrail; the primary metric is a mean or a proportion",
            param="primary_metric",
        )
    if row.state == State.DRAFT:
        _alias_of(row.target)
        if row.kind == Kind.SHADOW and (row.group is not None or row.holdout_percent):
            raise InvalidRequest(
                "a shadow changes nobody's answer: it has no group and no holdout", param="kind"
            )
        if row.group is not None and row.group.unit != row.unit:
            raise InvalidRequest(
                f"the exclusion group {row.group} divides by {row.group.unit}, not by {row.unit}",
                param="unit",
            )


def _alias_of(target: str) -> Alias | None:
    """The alias that an id goes by; None for a route. A version itself is a promise that no experiment breaks."""
    if target == "auto":
        return None
    try:
        found = find(target)
    except ModelNotFound as error:
        if Route.objects.filter(name=target).exists():
            return None
        raise InvalidRequest(error.message, param="target") from error
    if isinstance(found, ModelVersion):
        raise InvalidRequest(
            f"{target} is a version: who names it gets it. Experiment on an alias, a model's name or a route.",
            param="target",
        )
    if isinstance(found, Model):
        alias = found.aliases.select_related("model").filter(is_default=True).first()
        if alias is None:
            raise InvalidRequest(f"{found.name} has no default alias yet", param="target")
        return alias
    return found


def _take_slice(row: Experiment) -> None:
    """A part of the exclusion group's layer that no other experiment has."""
    if row.group is None:
        return
    # The group's row is the lock.
    group = ExclusionGroup.objects.select_for_update().get(pk=row.group.pk)
    others = group.experiments.filter(state__in=OPEN, group_low__isnull=False).exclude(pk=row.pk)
    taken = [(low or 0, high or 0) for low, high in others.values_list("group_low", "group_high")]
    found = free_slice(taken, row.group_percent * BUCKETS_PER_PERCENT)
    if found is None:
        used = sum(high - low for low, high in taken) / BUCKETS_PER_PERCENT
        raise Conflict(
            f"The exclusion group {group} has no {row.group_percent}% left in one piece: {used:g}% are taken.",
            param="group_percent",
        )
    row.group_low, row.group_high = found


def _only_one(row: Experiment) -> Experiment:
    """Two experiments on the same requests must share an exclusion group, or be for visibly different requests.

    Asked once the revision is taken: who started another one meanwhile has committed by then.
    """
    if row.kind == Kind.SHADOW:
        return row  # it changes nobody's answer
    others = Experiment.objects.filter(state__in=LIVE).exclude(pk=row.pk).exclude(kind=Kind.SHADOW)
    others = others.filter(alias=row.alias) if row.alias is not None else others.filter(target=row.target)
    for other in others:
        if row.group_id is not None and row.group_id == other.group_id:
            continue
        apart = any(
            name != "tags" and not set(wanted) & set(other.filters[name])
            for name, wanted in row.filters.items()
            if name in other.filters
        )
        if not apart:
            raise Conflict(
                f"{other.name} runs on {other.target} already; put both into one exclusion group, or give them "
                "filters that no request meets both of.",
                param="target",
            )
    return row


def _deal(row: Experiment, arms: Sequence[Arm]) -> list[list[int | None]]:
    current: Deal = tuple((first, arm) for first, arm in row.deal)
    # A shadow's control is whoever is copied.
    dealt = [arm for arm in arms if row.kind == Kind.SPLIT or not arm.is_control]
    wanted = exposed({arm.pk: arm.weight for arm in dealt}, row.exposure)
    return [[first, arm] for first, arm in deal(current, wanted)]


def _arms_of(row: Experiment) -> list[dict[str, Any]]:
    fields = ("name", "served_id", "weight", "is_control")
    return [dict(zip(fields, found, strict=True)) for found in row.arms.values_list(*fields)]


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (str, int, float, list, dict, type(None))) else str(value)
        for name, value in data.items()
    }
