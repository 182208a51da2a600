"""Form fields of the experiments' page: lists and limits as a person types them."""

from __future__ import annotations

from typing import Any

from django import forms
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from registry.admin_base import ReasonForm, ReasonModelForm
from routing.core.statistics.metrics import METRICS
from routing.models.experiments import RAMP, Experiment

PRIMARY = [(name, metric.title) for name, metric in METRICS.items() if metric.histogram is None]


class GuardrailsField(forms.Field):
    """A line each: ``error_rate 20%``."""

    widget = UnfoldAdminTextareaWidget

    def prepare_value(self, value: Any) -> Any:
        """The lines; what was typed wrong comes back as it was."""
        if not isinstance(value, list):
            return value
        return "\n".join(f"{one['metric']} {one['limit'] * 100:g}%" for one in value)

    def to_python(self, value: Any) -> list[dict[str, Any]]:
        found = []
        for line in str(value or "").splitlines():
            if not line.strip():
                continue
            name, _, limit = line.strip().partition(" ")
            try:
                found.append({"metric": name, "limit": round(float(limit.strip().rstrip("%")) / 100, 6)})
            except ValueError as error:
                raise forms.ValidationError(
                    f"{line.strip()[:60]!r} is no line like: error_rate 20%"
                ) from error
        return found

    def has_changed(self, initial: Any, data: Any) -> bool:
        return self.prepare_value(initial or []) != "\n".join(str(data or "").split("\r\n")).strip()


class RampField(forms.Field):
    """Percentages with commas between them."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        """``1, 5, 10``"""
        return ", ".join(f"{step:g}" for step in value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[float]:
        try:
            return [float(step) for step in str(value or "").replace("%", "").split(",") if step.strip()]
        except ValueError as error:
            raise forms.ValidationError("percentages with commas between them: 1, 5, 10, 25, 50") from error

    def has_changed(self, initial: Any, data: Any) -> bool:
        return self.prepare_value(initial or []) != str(data or "").strip()


class FiltersField(forms.Field):
    """A line each: ``team: search, ads``."""

    widget = UnfoldAdminTextareaWidget

    def prepare_value(self, value: Any) -> Any:
        """The lines; what was typed wrong comes back as it was."""
        if not isinstance(value, dict):
            return value
        return "\n".join(f"{name}: {', '.join(wanted)}" for name, wanted in value.items())

    def to_python(self, value: Any) -> dict[str, list[str]]:
        found = {}
        for line in str(value or "").splitlines():
            if line.strip():
                name, _, wanted = line.partition(":")
                found[name.strip()] = [word.strip() for word in wanted.split(",") if word.strip()]
        return found

    def has_changed(self, initial: Any, data: Any) -> bool:
        return (initial or {}) != self.to_python(data)


class ExperimentForm(ReasonModelForm):
    """An experiment."""

    primary_metric = forms.ChoiceField(choices=PRIMARY, initial="e2e", widget=UnfoldAdminSelectWidget())
    guardrails = GuardrailsField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3, "placeholder": "error_rate 20%\nttft_p95 10%"}),
        help_text=f"A line each, at most so much worse than the control: error_rate 20%. Known: {', '.join(METRICS)}.",
    )
    ramp = RampField(
        required=False,
        initial=list(RAMP),
        help_text="Percent of the traffic for the largest treatment; empty: all at once.",
    )
    filters = FiltersField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2, "placeholder": "team: search, ads"}),
        help_text="A line each: key, team, endpoint, language, or tags (from the body's metadata).",
    )

    class Meta:
        model = Experiment
        fields = "__all__"  # noqa: DJ007 - the page's fieldsets say which


class SharesForm(ReasonForm):
    """Another ratio between the arms."""

    weights = forms.CharField(
        label="Shares",
        max_length=2000,
        help_text="A line each: an arm and its weight; only the proportions matter.",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
    )
    field_order = ("weights", "reason")

    def clean_weights(self) -> dict[str, int]:
        """By arm."""
        found = {}
        for line in self.cleaned_data["weights"].splitlines():
            name, _, weight = line.strip().rpartition(" ")
            if line.strip():
                try:
                    found[name.strip()] = int(weight)
                except ValueError as error:
                    raise forms.ValidationError(f"{line.strip()[:60]!r} is no line like: new 50") from error
        return found


class WinnerForm(ReasonForm):
    """Which arm won."""

    winner = forms.ChoiceField(label="Winner", required=False, widget=UnfoldAdminSelectWidget())
    field_order: tuple[str, ...] = ("winner", "reason")
    arms: tuple[tuple[str, str], ...] = ()
    must = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        empty = () if self.must else (("", "none"),)
        self.fields["winner"].choices = (*empty, *self.arms)  # type: ignore[attr-defined]
        self.fields["winner"].required = self.must


class ShipForm(WinnerForm):
    """Which arm won, and what shall mean it."""

    must = True
    alias = forms.CharField(
        label="Alias",
        required=False,
        max_length=320,
        help_text="name or name@alias; the experiment's own target, if left empty.",
        widget=UnfoldAdminTextInputWidget(),
    )
    field_order = ("winner", "alias", "reason")
