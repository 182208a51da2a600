"""Admin pages of access: keys, users, groups."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from mmserve.key_actions import EDITABLE as LIMITS
from mmserve.key_actions import change_key, create_key, revoke_key
from mmserve.models import SCOPES, AccessKey
from registry.admin_base import ActionAdmin, ReasonModelForm
from registry.admin_forms import WordsField

# Patterns are too long for a column.
LISTED = tuple(name for name in LIMITS if name != "allowed_models")


class LimitsForm(ReasonModelForm):
    """What can be changed of a key."""

    allowed_models = WordsField(
        required=False,
        help_text="Names of models, versions and routes with commas between them; * and ? as in file names. "
        "None: all.",
    )


class KeyForm(LimitsForm):
    """A new key."""

    scopes = forms.MultipleChoiceField(
        choices=[("infer", "infer: run models"), ("manage", "manage: change the registry and load models")],
        initial=["infer"],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
    )


@admin.register(AccessKey)
class KeyPage(ActionAdmin):
    """Access keys: created (shown once), looked at, limited, revoked."""

    list_display = ("name", "token_key", "state", "scope_list", "user", *LISTED, "created")
    list_filter = ("revoked_at", "team", "user")
    list_select_related = ("user", "team")
    search_fields = ("name", "token_key")
    ordering = ("-created",)
    form = KeyForm
    actions_detail = ("revoke",)
    SHOWN = ("name", "token_key", "id", "state", "scope_list", "user", "created", "expiry", "revoked_at")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return [
                (None, {"fields": ("name", "user", "scopes", "expiry")}),
                ("Team and limits (empty: none)", {"fields": (*LIMITS, "reason")}),
            ]
        limits = (*LIMITS, "reason") if self.has_change_permission(request, obj) else LIMITS
        return [(None, {"fields": self.SHOWN}), ("Team and limits (empty: none)", {"fields": limits})]

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"user": request.user.pk, **super().get_changeform_initial_data(request)}

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self.SHOWN if obj else ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Of a key that is there only its limits are asked for."""
        return super().get_form(request, obj, change, **({"form": LimitsForm} if obj else {}), **kwargs)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What is revoked stays as it was; whoever may delete keys may revoke them."""
        allowed: bool = super().has_change_permission(request, obj)
        return allowed and (obj is None or obj.revoked_at is None)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The row stays for the record."""
        return False

    def has_revoke_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Who may revoke."""
        return request.user.has_perm("mmserve.delete_accesskey")

    @display(
        description="State",
        label={"good": "success", "expired": "warning", "revoked": "danger", "user off": "danger"},
    )
    def state(self, obj: AccessKey) -> str:
        if obj.revoked_at is not None:
            return "revoked"
        if not obj.user.is_active:
            return "user off"
        return "expired" if obj.expiry is not None and obj.expiry <= timezone.now() else "good"

    @display(description="Scopes")
    def scope_list(self, obj: AccessKey) -> str:
        return ", ".join(scope for scope in SCOPES if scope in obj.scopes)

    def create_row(self, obj: AccessKey, *, actor: str, reason: str, form: Any) -> AccessKey:
        limits = {name: value for name in LIMITS if (value := form.cleaned_data.get(name)) is not None}
        key, form.raw_key = create_key(
            name=obj.name,
            user=obj.user,
            actor=actor,
            reason=reason,
            scopes=form.cleaned_data["scopes"],
            expiry=obj.expiry,
            **limits,
        )
        form.created_key = key
        return key

    def update_row(
        self, obj: AccessKey, *, actor: str, reason: str, changes: dict[str, Any], form: Any
    ) -> None:
        change_key(obj, changes, actor=actor, reason=reason)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """The event says it already."""

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """A new one's text is kept for the answer to this very request only."""
        super().save_model(request, obj, form, change)
        if not change:
            request.raw_key = form.raw_key  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the key, once: it goes into no message, cookie or address."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": f"Access key {obj.name}",
            "raw_key": request.raw_key,  # type: ignore[attr-defined]
            "base_url": request.build_absolute_uri("/v1"),
            "row_url": self.row_url(obj.pk),
        }
        response = TemplateResponse(request, "admin/key_created.html", context)
        response["Cache-Control"] = "no-store"
        return response

    @action(description="Revoke", icon="block", permissions=["revoke"])
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            revoke_key,
            title="Revoke {row}?",
            explanation="Every gateway refuses it within a second. This cannot be undone.",
            button="Revoke",
            done="{row} is revoked.",
            danger=True,
        )


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserPage(DjangoUserAdmin, ModelAdmin):
    """People."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupPage(DjangoGroupAdmin, ModelAdmin):
    """Groups of people."""
