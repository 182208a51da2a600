"""The running experiments as values of the routing table."""

from __future__ import annotations

from routing.core.assignment import ArmEntry, ExperimentEntry, Group
from routing.models.experiments import LIVE, Experiment, Kind

BUCKETS_PER_PERCENT = 100


def experiment_entries() -> list[ExperimentEntry]:
    """Two queries, however many experiments run."""
    rows = Experiment.objects.filter(state__in=LIVE).select_related("group", "alias__model")
    return [entry_of(row) for row in rows.prefetch_related("arms")]


def entry_of(row: Experiment) -> ExperimentEntry:
    """A row as the value that the gateway assigns by."""
    group = None
    if row.group is not None and row.group_low is not None and row.group_high is not None:
        group = Group(unit=row.group.unit, salt=row.group.salt, low=row.group_low, high=row.group_high)
    return ExperimentEntry(
        id=row.pk,
        name=row.name,
        targets=targets_of(row),
        unit=row.unit,
        salt=row.salt,
        phase=row.phase,
        arms=tuple(ArmEntry(id=arm.pk, name=arm.name, served_id=arm.served_id) for arm in row.arms.all()),
        deal=tuple((first, arm) for first, arm in row.deal),
        filters={name: frozenset(wanted) for name, wanted in row.filters.items()},
        holdout=row.holdout_percent * BUCKETS_PER_PERCENT,
        group=group,
        shadow=row.kind == Kind.SHADOW,
        control=next((arm.name for arm in row.arms.all() if arm.is_control), ""),
        tokens_per_day=row.shadow_tokens_per_day if row.kind == Kind.SHADOW else 0,
    )


def targets_of(row: Experiment) -> tuple[str, ...]:
    """The ids that mean its target now: a default alias is its model's bare name, too."""
    alias = row.alias
    if alias is None:
        return (row.target,)
    return (str(alias), alias.model.name) if alias.is_default else (str(alias),)
