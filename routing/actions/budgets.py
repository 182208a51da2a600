"""Teams and budgets: create, change, delete."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import ProtectedError
from knox.models import get_token_model

from mmserve.errors import Conflict, InvalidRequest
from registry.actions.editing import check_editable
from registry.revision import bump
from registry.saving import save_checked
from routing.core.cost import Period, Scope
from routing.models import Budget, Team

TEAM_EDITABLE = frozenset({"description"})
BUDGET_EDITABLE = frozenset({"limit_usd", "enabled"})


@transaction.atomic
def create_team(name: str, *, actor: str, description: str = "", reason: str = "") -> Team:
    """A new team."""
    team = Team(name=name, description=description)
    save_checked(team, unique=f"There is a team {name!r} already.")
    bump("team.created", str(team), actor, reason)
    return team


@transaction.atomic
def update_team(team: Team, *, actor: str, reason: str = "", **changes: Any) -> Team:
    """Change its description."""
    check_editable(changes, TEAM_EDITABLE)
    for field, value in changes.items():
        setattr(team, field, value)
    save_checked(team, unique="")
    bump("team.changed", str(team), actor, reason, {"changed": sorted(changes)})
    return team


@transaction.atomic
def delete_team(team: Team, *, actor: str, reason: str = "") -> None:
    """Delete a team without keys, and its budgets; what it used stays in the reports."""
    name = team.name
    try:
        team.delete()
    except ProtectedError as error:
        raise Conflict(
            f"The team {name} has keys, revoked ones among them: its name stands for them."
        ) from error
    Budget.objects.filter(scope=Scope.TEAM.value, subject=name).delete()
    bump("team.deleted", name, actor, reason)


@transaction.atomic
def create_budget(
    scope: str,
    subject: str,
    *,
    limit_usd: Decimal,
    actor: str,
    period: str = Period.MONTH.value,
    enabled: bool = True,
    reason: str = "",
) -> Budget:
    """A new budget; what was spent in its period before counts as well."""
    budget = Budget(scope=scope, subject=subject, period=period, limit_usd=limit_usd, enabled=enabled)
    budget.subject = _subject(scope, subject)
    save_checked(budget, unique=f"There is a {budget} already: change its limit.")
    bump("budget.created", str(budget), actor, reason, _data(budget))
    return budget


@transaction.atomic
def update_budget(budget: Budget, *, actor: str, reason: str = "", **changes: Any) -> Budget:
    """Another limit, or on and off."""
    check_editable(changes, BUDGET_EDITABLE)
    budget = Budget.objects.select_for_update().get(pk=budget.pk)
    if changes.get("enabled") and not budget.enabled:
        budget.opened += 1
    for field, value in changes.items():
        setattr(budget, field, value)
    save_checked(budget, unique="")
    bump("budget.changed", str(budget), actor, reason, _data(budget))
    return budget


@transaction.atomic
def delete_budget(budget: Budget, *, actor: str, reason: str = "") -> None:
    """Nothing is limited by it any more."""
    name, data = str(budget), _data(budget)
    budget.delete()
    bump("budget.deleted", name, actor, reason, data)


def _data(budget: Budget) -> dict[str, Any]:
    return {"limit_usd": str(budget.limit_usd), "enabled": budget.enabled, "period": budget.period}


def _subject(scope: str, subject: str) -> str:
    """The subject as usage names it; a key or team that does not exist is a mistake to find now."""
    if scope == Scope.TEAM.value and not Team.objects.filter(name=subject).exists():
        raise InvalidRequest(f"There is no team {subject[:100]!r}.", param="subject")
    if scope == Scope.KEY.value:
        try:
            key = get_token_model().objects.filter(pk=subject).first()
        except (ValidationError, ValueError):
            key = None
        if key is None:
            raise InvalidRequest(f"There is no access key with the id {subject[:100]!r}.", param="subject")
        return str(key.pk)
    return subject
