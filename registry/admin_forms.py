"""Form fields that the registry's pages share."""

from __future__ import annotations

import json
import re
from typing import Any

from django import forms
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from registry.admin_base import ReasonForm, ReasonModelForm
from registry.models import CAPABILITIES, CAUSES, MAX_FALLBACKS, check_label

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
BYTES = re.compile(rf"(\d{{1,18}}(?:\.\d{{1,6}})?)\s*({'|'.join(UNITS)})?")


class WordsField(forms.Field):
    """A JSON list of words, typed with commas between them."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        """The words with commas; what was typed wrong comes back as it was."""
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:
        return [word.strip() for word in str(value or "").split(",") if word.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return (initial or []) != self.to_python(data)


class LinksField(forms.Field):
    """A JSON list of links, typed one a line: its title, then its address."""

    widget = UnfoldAdminTextareaWidget

    def prepare_value(self, value: Any) -> Any:
        """A line each; what was typed wrong comes back as it was."""
        if not isinstance(value, list):
            return value
        return "\n".join(f"{link['title']} {link['url']}" for link in value)

    def to_python(self, value: Any) -> list[dict[str, str]]:
        lines = [line.strip() for line in str(value or "").splitlines()]
        parts = [line.rpartition(" ") for line in lines if line]
        return [{"title": title.strip() or url, "url": url} for title, _, url in parts]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return (initial or []) != self.to_python(data)


class BytesField(forms.Field):
    """A number of bytes, typed with its unit: ``20 GiB``, ``1.5 GiB``; a bare number is bytes."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        """In the largest unit that says it exactly; what was typed wrong comes back as it was."""
        if not isinstance(value, int):
            return value
        unit = next((unit for unit in reversed(UNITS) if value and value % UNITS[unit] == 0), "B")
        return f"{value // UNITS[unit]} {unit}"

    def to_python(self, value: Any) -> int | None:
        if value in self.empty_values:
            return None
        found = BYTES.fullmatch(str(value).strip())
        if found is None:
            raise forms.ValidationError("a number of bytes with its unit, like 20 GiB or 512 MiB")
        return round(float(found[1]) * UNITS[found[2] or "B"])

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(initial != self.to_python(data))
        except forms.ValidationError:
            return True


class InARow(UnfoldAdminCheckboxSelectMultipleWidget):
    """Boxes to check, each before its word."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        """By the project's own template, which a form's renderer does not know."""
        return render_to_string("admin/parts/checks.html", self.get_context(name, value, attrs))


class ModelForm(ReasonModelForm):
    """A model."""

    links = LinksField(
        required=False,
        help_text="One a line: its title, then its address.",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
    )
    tags = WordsField(required=False, help_text="Words with commas between them; key=value among them.")
    fallbacks = WordsField(
        required=False,
        help_text="Who stands in for it, the first one first, with commas between them: name, name@version or "
        f"name@alias, {MAX_FALLBACKS} at most.",
    )
    no_fallback_on = forms.MultipleChoiceField(
        label="No fallback is tried after",
        required=False,
        choices=[(cause, cause) for cause in CAUSES],
        widget=InARow,
    )


class VersionForm(ReasonModelForm):
    """A version."""

    tags = WordsField(required=False, help_text="Words with commas between them; key=value among them.")
    capabilities = WordsField(
        required=False,
        help_text=f"Of {', '.join(CAPABILITIES)}; read from the files, correct what they do not say.",
    )


class PromoteForm(ReasonForm):
    """Which alias moves; remembers what the operator saw, so that nobody's move is overwritten unseen."""

    alias = forms.CharField(
        label="Alias", max_length=100, validators=[check_label], widget=UnfoldAdminTextInputWidget()
    )
    # Revision of each alias when the page was opened.
    seen = forms.JSONField(widget=forms.HiddenInput, required=False)
    field_order = ("alias", "reason", "seen")

    def clean(self) -> dict[str, Any]:
        """The revision that the chosen alias must have still; one that was not there must be new."""
        cleaned = super().clean() or {}
        seen = cleaned.pop("seen", None)
        cleaned["expected_revision"] = seen.get(cleaned.get("alias"), 0) if isinstance(seen, dict) else None
        return cleaned


class RollbackForm(ReasonForm):
    """Remembers the revision that the operator saw."""

    expected_revision = forms.IntegerField(widget=forms.HiddenInput, required=False)


class DuplicateForm(ReasonForm):
    """What a duplicate needs to know."""

    label = forms.CharField(
        label="New version", max_length=100, validators=[check_label], widget=UnfoldAdminTextInputWidget()
    )
    engine_options = forms.JSONField(
        label="Engine options",
        required=False,
        help_text='What a deployment of it begins with, e.g. {"max_streams": 16}.',
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
        encoder=json.JSONEncoder,
    )
    field_order = ("label", "engine_options", "reason")

    def clean_engine_options(self) -> dict[str, Any]:
        """Empty means none."""
        return self.cleaned_data["engine_options"] or {}
