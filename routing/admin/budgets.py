"""Teams and budgets."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from knox.models import get_token_model
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from registry.admin_base import ActionAdmin, ReasonModelForm
from registry.admin_parts import bar
from routing import actions
from routing.admin.usage import dollars
from routing.core.cost import Scope, in_usd, to_nano
from routing.ledgers import standing
from routing.models import Budget, Team

NEARLY_SPENT_PERCENT = 90


@admin.register(Team)
class TeamPage(ActionAdmin):
    """Teams: keys that are reported and limited together."""

    list_display = ("name", "keys", "description", "created_at")
    search_fields = ("name", "description")
    fields = ("name", "description", "reason")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Usage is kept under the name."""
        return ("name",) if obj else ()

    @display(description="Keys in use")
    def keys(self, obj: Team) -> int:
        return get_token_model().objects.filter(team=obj, revoked_at=None).count()

    def create_row(self, obj: Team, *, actor: str, reason: str, form: Any) -> Team:
        return actions.create_team(obj.name, description=obj.description, actor=actor, reason=reason)

    def update_row(self, obj: Team, *, actor: str, reason: str, changes: dict[str, Any], form: Any) -> None:
        actions.update_team(obj, actor=actor, reason=reason, **changes)

    def delete_row(self, obj: Team, *, actor: str, reason: str) -> None:
        actions.delete_team(obj, actor=actor, reason=reason)


class BudgetForm(ReasonModelForm):
    """A new budget: whom it limits is chosen among what there is."""

    whom = forms.ChoiceField(label="For", widget=UnfoldAdminSelectWidget)

    class Meta:
        model = Budget
        fields = ("period", "limit_usd", "enabled")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keys = get_token_model().objects.filter(revoked_at=None).order_by("name")
        choices = {
            "Teams": [(f"{Scope.TEAM.value}:{team.name}", team.name) for team in Team.objects.all()],
            "Keys": [(f"{Scope.KEY.value}:{key.pk}", str(key)) for key in keys],
            "Routes": [(f"{Scope.ROUTE.value}:{name}", name) for name in route_names()],
        }
        self.fields["whom"].choices = [
            ("", "---------"),
            *((name, rows) for name, rows in choices.items() if rows),
        ]


@admin.register(Budget)
class BudgetPage(ActionAdmin):
    """Budgets: what a key, a team or a route may spend."""

    list_display = ("whom_name", "scope", "period", "spending", "limit", "enabled")
    list_filter = ("scope", "period", "enabled")
    search_fields = ("subject",)
    SHOWN = ("whom_name", "scope", "subject", "period", "spending")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Of a budget that is there only its limit is asked for."""
        return super().get_form(request, obj, change, **({} if obj else {"form": BudgetForm}), **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        changed = ("limit_usd", "enabled", "reason")
        if obj is None:
            return [(None, {"fields": ("whom", "period", *changed)})]
        return [(None, {"fields": self.SHOWN}), ("Limit", {"fields": changed})]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self.SHOWN if obj else ()

    @display(description="For", ordering="subject")
    def whom_name(self, obj: Budget) -> str:
        """A key by its name."""
        if obj.scope != Scope.KEY.value:
            return obj.subject
        key = get_token_model().objects.filter(pk=obj.subject).first()
        return str(key) if key else obj.subject

    @display(description="Limit", ordering="limit_usd")
    def limit(self, obj: Budget) -> str:
        return dollars(in_usd(to_nano(obj.limit_usd)))

    @display(description="Spent in this period")
    def spending(self, obj: Budget) -> SafeString:
        now, limit = standing(obj), to_nano(obj.limit_usd)
        held = f", {dollars(in_usd(now.held_nano))} held" if now.held_nano else ""
        text = f"{dollars(in_usd(now.spent_nano))} of {dollars(in_usd(limit))}{held}"
        return bar(now.spent_nano + now.held_nano, limit, text, danger_above=NEARLY_SPENT_PERCENT)

    def create_row(self, obj: Budget, *, actor: str, reason: str, form: Any) -> Budget:
        scope, _, subject = form.cleaned_data["whom"].partition(":")
        return actions.create_budget(
            scope,
            subject,
            period=obj.period,
            limit_usd=obj.limit_usd,
            enabled=obj.enabled,
            actor=actor,
            reason=reason,
        )

    def update_row(self, obj: Budget, *, actor: str, reason: str, changes: dict[str, Any], form: Any) -> None:
        actions.update_budget(obj, actor=actor, reason=reason, **changes)

    def delete_row(self, obj: Budget, *, actor: str, reason: str) -> None:
        actions.delete_budget(obj, actor=actor, reason=reason)


def route_names() -> list[str]:
    """What a client may name besides models."""
    from routing import models

    route: Any = getattr(models, "Route", None)
    return ["auto", *(route.objects.values_list("name", flat=True) if route else ())]
