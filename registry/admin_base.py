"""What every admin page here does: write through actions, ask before it acts, and say refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.admin import ModelAdmin, TabularInline
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from mmserve.errors import MmserveError

MAX_REASON_CHARS = 2000
# Fields of the forms that are no fields of the row.
ASKED = ("reason", "expected_revision")
STATE_LABELS = {
    "ready": "success",
    "fetching": "info",
    "loading": "info",
    "pending": "info",
    "draining": "warning",
    "asleep": "warning",
    "failed": "danger",
}


def actor_of(request: HttpRequest) -> str:
    """Who clicks, for the event."""
    return f"user:{request.user}"


class ReasonForm(forms.Form):
    """What a confirmation asks for."""

    reason = forms.CharField(
        label="Reason",
        required=False,
        max_length=MAX_REASON_CHARS,
        help_text="Kept in the audit trail.",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
    )


class ReasonModelForm(forms.ModelForm):
    """A row's form with the reason of the change; a refused action comes back as an error of the form."""

    refusal: MmserveError | None = None
    reason = forms.CharField(
        label="Reason of this change",
        required=False,
        max_length=MAX_REASON_CHARS,
        help_text="Kept in the audit trail.",
        widget=UnfoldAdminTextInputWidget(),
    )

    def clean(self) -> dict[str, Any] | None:
        """Put the refusal beside the field that it names."""
        cleaned = super().clean()
        if self.refusal is not None:
            field = self.refusal.param if self.refusal.param in self.fields else None
            self.add_error(field, self.refusal.message.removeprefix(f"{field}: "))
        return cleaned

    def validate_unique(self) -> None:
        """Whether a name is taken is the action's to say."""


class ActionAdmin(ModelAdmin):
    """A page whose writes are actions: create_row, update_row and delete_row."""

    form = ReasonModelForm
    formfield_overrides = {
        models.JSONField: {"widget": UnfoldAdminTextareaWidget(attrs={"rows": 3})},
        models.TextField: {"widget": UnfoldAdminTextareaWidget(attrs={"rows": 5})},
    }
    warn_unsaved_form = True
    compressed_fields = True
    list_per_page = 50
    show_full_result_count = False

    def create_row(self, obj: Any, *, actor: str, reason: str, form: Any) -> models.Model:
        """Create ``obj``'s likeness through its action."""
        raise NotImplementedError

    def update_row(self, obj: Any, *, actor: str, reason: str, changes: dict[str, Any], form: Any) -> None:
        """Change a row through its action."""
        raise NotImplementedError

    def delete_row(self, obj: Any, *, actor: str, reason: str) -> None:
        """Delete a row through its action."""
        raise NotImplementedError

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Through the actions only."""
        reason = form.cleaned_data.get("reason", "")
        if not change:
            obj.pk = self.create_row(obj, actor=actor_of(request), reason=reason, form=form).pk
            obj._state.adding = False
            return
        changes = {name: form.cleaned_data[name] for name in form.changed_data if name not in ASKED}
        if changes:
            # The form has written into ``obj``; the action compares with what is stored.
            fresh = self.model._default_manager.get(pk=obj.pk)
            self.update_row(fresh, actor=actor_of(request), reason=reason, changes=changes, form=form)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Nothing besides the row is saved by a form here; the history reads the formsets' lists."""
        for formset in formsets:
            formset.save(commit=False)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Through the action."""
        self.delete_row(obj, actor=actor_of(request), reason="")

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        """Through the action, one after another."""
        for obj in queryset:
            self.delete_model(request, obj)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form, carrying the refusal of the try before, if there was one."""
        form = super().get_form(request, obj, change=change, **kwargs)
        refusal = getattr(request, "refusal", None)
        return type(form.__name__, (form,), {"refusal": refusal}) if refusal else form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """A refused save shows the form again, with what was typed and the reason."""
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except MmserveError as error:
            request.refusal = error  # type: ignore[attr-defined]
            return super().changeform_view(request, object_id, form_url, extra_context)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A refused deletion says why."""
        try:
            return super().delete_view(request, object_id, extra_context)
        except MmserveError as error:
            messages.error(request, error.message)
            return HttpResponseRedirect(self.row_url(object_id))

    def response_action(self, request: HttpRequest, queryset: Any) -> Any:
        """A refused deletion of several rows says why, too."""
        try:
            return super().response_action(request, queryset)
        except MmserveError as error:
            messages.error(request, error.message)
            return HttpResponseRedirect(request.get_full_path())

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """The action decides what may go: Django's own rules of protection would only stand in its way."""
        names = [str(obj) for obj in objs]
        return names, {self.model._meta.verbose_name_plural: len(names)}, set(), []

    def row_url(self, object_id: Any) -> str:
        """The page of one row."""
        meta = self.model._meta
        return reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[object_id])

    def confirmed(
        self,
        request: HttpRequest,
        object_id: Any,
        verb: Callable[..., Any],
        *,
        title: str,
        explanation: str,
        button: str,
        done: str,
        danger: bool = False,
        form_class: type[ReasonForm] = ReasonForm,
        initial: dict[str, Any] | None = None,
        again: bool = False,
    ) -> HttpResponse:
        """Ask for a reason, then act on one row; ``{row}`` stands for it in the texts, ``{made}`` for the result.

        Whatever else ``form_class`` asks for, the verb gets by name. ``again``: a refusal shows the form with what
        was typed. What the verb made anew is shown next.
        """
        row = self.get_object(request, object_id)
        if row is None:
            raise Http404(f"There is no {self.model._meta.verbose_name} {object_id}.")
        form = form_class(request.POST or None, initial=initial)
        if request.method == "POST" and form.is_valid():
            try:
                made = verb(row, actor=actor_of(request), **form.cleaned_data)
            except MmserveError as error:
                if not again:
                    messages.error(request, error.message)
                    return HttpResponseRedirect(self.row_url(object_id))
                form.add_error(error.param if error.param in form.fields else None, error.message)
            else:
                messages.success(request, done.format(row=row, made=made))
                return HttpResponseRedirect(
                    self.row_url(made.pk if isinstance(made, self.model) else object_id)
                )
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": title.format(row=row),
            "explanation": explanation.format(row=row),
            "button": button,
            "danger": danger,
            "row": row,
            "original": row,
            "form": form,
            "back": self.row_url(object_id),
        }
        return TemplateResponse(request, "admin/confirm.html", context)


class ReadOnly:
    """A page that shows and changes nothing."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyInline(ReadOnly, TabularInline):
    """Rows beside their parent."""

    extra = 0
    max_num = 0
    show_change_link = True
    tab = True

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """All of them."""
        return self.fields
