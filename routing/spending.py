"""What was spent: budgets as values, and their spending as the rows know it."""

from __future__ import annotations

from django.db.models import Sum

from routing.core.cost import BudgetEntry, Period, Scope, period_start, to_nano
from routing.core.records import Spent
from routing.models import Budget, UsageCursor, UsageHour

CURSOR = "usage"


def budget_entry(row: Budget) -> BudgetEntry:
    """A row as the value that the gateways carry."""
    return BudgetEntry(
        id=f"{row.pk}.{row.opened}",
        name=str(row),
        scope=Scope(row.scope),
        subject=row.subject,
        period=Period(row.period),
        limit_nano=to_nano(row.limit_usd),
    )


def budget_entries() -> list[BudgetEntry]:
    """All that are on."""
    return [budget_entry(row) for row in Budget.objects.filter(enabled=True)]


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
