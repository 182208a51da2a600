"""The admin page of aliases."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import action, display

from mmserve.errors import InvalidRequest
from registry import actions
from registry.admin_base import ActionAdmin, ReasonModelForm
from registry.admin_events import OnTimeline
from registry.admin_forms import RollbackForm
from registry.admin_parts import in_utc
from registry.models import Alias


class AliasForm(ReasonModelForm):
    """Remembers the revision that the operator saw: whoever moved the alias meanwhile is not overwritten."""

    expected_revision = forms.IntegerField(widget=forms.HiddenInput, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["expected_revision"].initial = self.instance.revision if self.instance.pk else 0


@admin.register(Alias)
class AliasPage(OnTimeline, ActionAdmin):
    """Aliases: saving moves one, by compare-and-set on the revision that the form was opened at."""

    list_display = ("__str__", "version", "is_default", "revision", "moved")
    list_filter = ("is_default", ("model", AutocompleteSelectFilter))
    list_select_related = ("model", "version__model")
    search_fields = ("model__name", "name")
    autocomplete_fields = ("version",)
    form = AliasForm
    actions_detail = ("rollback", "make_default")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        asked = ("version", "reason", "expected_revision")
        shown = ("name", "is_default", "revision", "moved") if obj else ("name",)
        return [(None, {"fields": (*shown, *asked)})]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("name", "is_default", "revision", "moved") if obj else ()

    @display(description="Moved (UTC)", ordering="updated_at")
    def moved(self, obj: Alias) -> str:
        return in_utc(obj.updated_at)

    def create_row(self, obj: Alias, *, actor: str, reason: str, form: Any) -> Alias:
        obj.model = obj.version.model
        return actions.promote(obj.version, actor=actor, reason=reason, alias=obj.name, expected_revision=0)

    def update_row(self, obj: Alias, *, actor: str, reason: str, changes: dict[str, Any], form: Any) -> None:
        version = changes.get("version", obj.version)
        if version.model_id != obj.model_id:
            raise InvalidRequest(f"{obj} can only mean versions of {obj.model.name}", param="version")
        expected = form.cleaned_data["expected_revision"]
        actions.promote(version, actor=actor, reason=reason, alias=obj.name, expected_revision=expected)

    def delete_row(self, obj: Alias, *, actor: str, reason: str) -> None:
        actions.delete_alias(obj, actor=actor, reason=reason)

    @action(description="Roll back", icon="undo", permissions=["change"])
    def rollback(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.get_object(request, object_id)
        now, before = (row.version.version, actions.aliases.meant_before(row)) if row else ("", None)
        return self.confirmed(
            request,
            object_id,
            lambda row, **why: actions.rollback(row.model, alias=row.name, **why),
            title="Roll {row} back?",
            explanation=f"It means {now} now, and goes back to {before or 'nothing: it has meant no other'}.",
            button="Roll back",
            done="{made} means {made.version.version} again.",
            form_class=RollbackForm,
            initial={"expected_revision": row.revision if row else None},
        )

    @action(description="Make default", icon="star", permissions=["change"])
    def make_default(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.set_default_alias,
            title="Make {row} the default?",
            explanation="The model's bare name means what this alias means.",
            button="Make default",
            done="{row} is the default alias.",
        )
