"""`manage.py budget_set key|team|route SUBJECT USD --period day|month|total`"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import InvalidRequest, NotFound
from mmserve.key_actions import find_key
from routing import actions
from routing.core.cost import Period, Scope
from routing.models import Budget
from routing.presentation import budget_fields


class Command(DataCommand):
    help = "Make a budget, or change its limit. Exit codes: 0 done, 4 several keys of that name, 5 a wrong value."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("scope", choices=[one.value for one in Scope])
        parser.add_argument(
            "subject",
            help="the name of a team or a route; of a key its id, its first characters (15) or its name",
        )
        parser.add_argument("limit_usd", help="dollars, or 'none': delete it")
        parser.add_argument("--period", choices=[one.value for one in Period], default=Period.MONTH.value)
        add_reason(parser)

    def run(
        self, *, scope: str, subject: str, limit_usd: str, period: str, reason: str, **options: Any
    ) -> dict[str, Any]:
        if scope == Scope.KEY.value:
            subject = _key_id(subject)
        who = {"actor": actor(), "reason": reason}
        row = Budget.objects.filter(scope=scope, subject=subject, period=period).first()
        if limit_usd == "none":
            if row is not None:
                actions.delete_budget(row, **who)
            return {"scope": scope, "subject": subject, "period": period, "limit_usd": None}
        limit = _dollars(limit_usd)
        if row is None:
            row = actions.create_budget(scope, subject, limit_usd=limit, period=period, **who)
        else:
            row = actions.update_budget(row, limit_usd=limit, enabled=True, **who)
        return budget_fields(row)


def _key_id(given: str) -> str:
    try:
        return str(find_key(given).pk)
    except NotFound:
        # A budget outlives its key, and is then found by the id alone.
        return given


def _dollars(text: str) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation as error:
        raise InvalidRequest(f"limit_usd: {text[:50]!r} is no number", param="limit_usd") from error
    return found
