"""`manage.py budget_list`"""

from __future__ import annotations

from typing import Any

from mmserve.command import DataCommand
from routing.models import Budget
from routing.presentation import budget_fields


class Command(DataCommand):
    help = "Every budget with what is spent of its present period. Exit codes: 0 done."
    columns = ("scope", "name", "period", "limit_usd", "spent_usd", "held_usd", "enabled")

    def run(self, **options: Any) -> list[dict[str, Any]]:
        return [budget_fields(row) for row in Budget.objects.all()]
