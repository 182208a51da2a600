"""Admin pages of what happened: the events, and where a row's history is shown."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from unfold.admin import ModelAdmin
from unfold.decorators import display

from registry.admin_base import ReadOnly
from registry.admin_parts import in_utc
from registry.models import Event


class OnTimeline:
    """A page whose history is the timeline of its model, which knows more than Django's own log."""

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """To the timeline."""
        row = self.get_object(request, object_id)  # type: ignore[attr-defined]
        if row is None:
            raise Http404(f"There is no row {object_id}.")
        return HttpResponseRedirect(reverse("admin:registry_model_history", args=[row.model_id]))


@admin.register(Event)
class EventPage(ReadOnly, ModelAdmin):
    """The timeline: who did what to which thing, and why."""

    list_display = ("when", "kind_label", "subject", "changed", "actor", "reason", "revision")
    list_filter = ("kind",)
    search_fields = ("subject", "actor", "reason")
    date_hierarchy = "at"
    list_per_page = 100
    show_full_result_count = False

    @display(
        description="What",
        label={
            "version.failed": "danger",
            "version.damaged": "danger",
            "model.deleted": "danger",
            "version.deleted": "danger",
            "key.revoked": "danger",
            "version.ready": "success",
            "alias.promoted": "info",
            "alias.rolled_back": "warning",
        },
        ordering="kind",
    )
    def kind_label(self, obj: Event) -> str:
        return obj.kind

    @display(description="Change")
    def changed(self, obj: Event) -> str:
        return Truncator(obj.change).chars(80) or "–"

    @display(description="When (UTC)", ordering="at")
    def when(self, obj: Event) -> SafeString:
        return format_html('<span class="whitespace-nowrap">{}</span>', in_utc(obj.at))
