"""What was spent: budgets as values, and their spending as the rows know it."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Sum
from knox.models import get_token_model

from routing.core.cost import BudgetEntry, Period, Scope, period_start, to_nano
from routing.core.records import Spent
from routing.models import Budget, UsageCursor, UsageHour

CURSOR = "usage"


def whom_names(rows: Iterable[Budget]) -> dict[str, str]:
    """By subject, the names of the keys among the subjects; those that are gone are left out."""
    ids = [row.subject for row in rows if row.scope == Scope.KEY.value]
    keys = get_token_model().objects.filter(pk__in=ids).values_list("pk", "name") if ids else ()
    return {str(pk): name for pk, name in keys}


def budget_entry(row: Budget, whom: str | None = None) -> BudgetEntry:
    """A row as the value that the gateways carry; ``whom`` is what clients are told in the subject's place."""
    return BudgetEntry(
        id=f"{row.pk}.{row.opened}",
        name=row.named(whom or row.subject),
        scope=Scope(row.scope),
        subject=row.subject,
        period=Period(row.period),
        limit_nano=to_nano(row.limit_usd),
    )


def budget_entries() -> list[BudgetEntry]:
    """All that are on."""
    rows = list(Budget.objects.filter(enabled=True))
    names = whom_names(rows)
    return [budget_entry(row, names.get(row.subject)) for row in rows]


def spent_of(budget: BudgetEntry, now: float) -> Spent:
    """What the rows say of its present period, and the last record of the stream that is in them.

    The roll-up moves both in one transaction: a sum between two equal cursors is of exactly that cursor.
    """
    start = period_start(budget.period, now)
    rows = UsageHour.objects.filter(**{budget.scope.value: budget.subject})
    if start is not None:
        rows = rows.filter(hour__gte=start)
    last_id = rolled_up_to()
    while True:
        nano = rows.aggregate(nano=Sum("cost_nano"))["nano"] or 0
        after = rolled_up_to()
        if after == last_id:
            return Spent(nano, last_id)
        last_id = after


def rolled_up_to() -> str:
    """The id of the last record that is in the rows."""
    return UsageCursor.objects.filter(pk=CURSOR).values_list("last_id", flat=True).first() or "0-0"
