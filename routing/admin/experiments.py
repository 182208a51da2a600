"""The experiments' page: the verdict first, then arms, intervals, guardrails, what happens next, and the buttons."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display

from mmserve.errors import InvalidRequest
from registry.admin_base import ActionAdmin
from routing.actions import experiments as actions
from routing.admin.experiments_forms import (
    ExperimentForm,
    FiltersField,
    GuardrailsField,
    RampField,
    SharesForm,
    ShipForm,
    WinnerForm,
)
from routing.admin.experiments_panel import STATE_LABELS, TONES, panel_of
from routing.core.statistics.metrics import METRICS
from routing.experiments.report import report_of
from routing.models.experiments import LIVE, OPEN, Arm, ExclusionGroup, Experiment, State

# In which states the page offers an action.
OFFERED: dict[str, tuple[str, ...]] = {
    "start": (State.DRAFT,),
    "ramp": (State.RAMPING,),
    "pause": LIVE,
    "resume": (State.PAUSED,),
    "shares": OPEN,
    "conclude": OPEN,
    "abort": OPEN,
    "ship": (*OPEN, State.CONCLUDED),
}


# Fields that a person types as lines, and how they read once they cannot be changed.
AS_LINES = {
    "filters": "filters_lines",
    "primary_metric": "primary",
    "guardrails": "guardrails_lines",
    "ramp": "ramp_words",
}


class ArmInline(TabularInline):
    """The arms of a draft; later they are what was measured."""

    model = Arm
    fields = ("name", "version", "weight", "is_control")
    autocomplete_fields = ("version",)
    extra = 0
    min_num = 2
    max_num = actions.MAX_ARMS
    tab = False

    def _open(self, obj: Any) -> bool:
        return obj is None or obj.state == State.DRAFT

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._open(obj) and super().has_add_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._open(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._open(obj) and super().has_delete_permission(request, obj)


@admin.register(Experiment)
class ExperimentPage(ActionAdmin):
    """Experiments."""

    list_display = ("name", "state_label", "verdict", "target", "primary", "traffic", "since")
    list_filter = ("state", "primary_metric")
    search_fields = ("name", "target", "hypothesis")
    form = ExperimentForm
    inlines = (ArmInline,)
    change_form_outer_before_template = "admin/experiments/panel.html"
    actions_detail = ("start", "ramp", "pause", "resume", "ship", "conclude", "shares", "abort")

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request).select_related("group", "winner", "alias__model")
        return rows.prefetch_related("arms")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        open_to_edits = obj is None or obj.state == State.DRAFT
        filters, primary, guardrails, ramp = (
            field if open_to_edits else lines for field, lines in AS_LINES.items()
        )
        return [
            (None, {"fields": (("name", "target"), "hypothesis", ("unit", "holdout_percent"), filters)}),
            (
                "What decides",
                {"fields": ((primary, "smallest_effect"), ("alpha", "score_name"), guardrails)},
            ),
            (
                "How it grows",
                {"fields": (ramp, ("step_minutes", "step_requests"), ("group", "group_percent"))},
            ),
            ("Shadow", {"fields": ("kind", ("shadow_percent", "shadow_tokens_per_day"))}),
            ("Why", {"fields": ("reason",)}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        if obj is None:
            return ()
        if obj.state == State.DRAFT:
            return ("name",)
        fixed = (field for field in actions.FIELDS if field not in actions.EDITABLE_LATER)
        return ("name", *(AS_LINES.get(field, field) for field in fixed))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """The buttons that make sense in its state; the actions themselves check again."""
        state = Experiment.objects.filter(pk=object_id).values_list("state", flat=True).first()
        hidden = {name for name, states in OFFERED.items() if state not in states}
        offered = super().get_actions_detail(request, object_id)
        return [one for one in offered if one.method.original_function_name not in hidden]

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """The state in five seconds, above the form."""
        row = self.get_object(request, object_id) if object_id else None
        more = {**(extra_context or {}), "panel": panel_of(row, request.GET) if row is not None else None}
        return super().changeform_view(request, object_id, form_url, more)

    def get_formset_kwargs(self, request: HttpRequest, obj: Any, inline: Any, prefix: str) -> dict[str, Any]:
        """A new experiment begins with a control and one arm to name."""
        found = super().get_formset_kwargs(request, obj, inline, prefix)
        if obj.pk is None:
            found["initial"] = [{"name": "control", "is_control": True}, {"name": "new"}]
        return found

    def create_row(self, obj: Experiment, *, actor: str, reason: str, form: Any) -> Experiment:
        fields = {name: form.cleaned_data[name] for name in actions.FIELDS if name in form.cleaned_data}
        return actions.create_experiment(obj.name, [], actor=actor, reason=reason, **fields)

    def update_row(
        self, obj: Experiment, *, actor: str, reason: str, changes: dict[str, Any], form: Any
    ) -> None:
        actions.update_experiment(obj, actor=actor, reason=reason, **changes)

    def delete_row(self, obj: Experiment, *, actor: str, reason: str) -> None:
        actions.delete_experiment(obj, actor=actor, reason=reason)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The arms go through the action as well, all of them at once."""
        super().save_related(request, form, formsets, change)
        for formset in formsets:
            if not formset.has_changed():
                continue
            wanted = [
                {name: one.cleaned_data.get(name) for name in ArmInline.fields}
                for one in formset.forms
                if one.cleaned_data.get("version") and not one.cleaned_data.get("DELETE")
            ]
            if not wanted and not change:
                raise InvalidRequest("An experiment needs arms.", param="arms")
            row = Experiment.objects.get(pk=form.instance.pk)
            actions.update_experiment(row, actor=f"user:{request.user}", arms=wanted)

    @display(description="State", label=STATE_LABELS, ordering="state")
    def state_label(self, obj: Experiment) -> tuple[str, str]:
        return obj.state, obj.state.replace("_", " ")

    @display(description="What to make of it")
    def verdict(self, obj: Experiment) -> SafeString | str:
        """In red where somebody must act, in green where an arm has won."""
        if obj.state not in OPEN:
            return obj.state_reason or "–"
        report = report_of(obj)
        colour = {"bad": "text-red-700 dark:text-red-400", "good": "text-green-700 dark:text-green-400"}
        return format_html('<span class="{}">{}</span>', colour.get(TONES[report.verdict], ""), report.words)

    @display(description="Filters")
    def filters_lines(self, obj: Experiment) -> SafeString | str:
        return _lines(FiltersField().prepare_value(obj.filters)) or "none: every request to the target"

    @display(description="Guardrails")
    def guardrails_lines(self, obj: Experiment) -> SafeString | str:
        return _lines(GuardrailsField().prepare_value(obj.guardrails)) or "none"

    @display(description="Ramp (%)")
    def ramp_words(self, obj: Experiment) -> str:
        return RampField().prepare_value(obj.ramp) or "none: all at once"

    @display(description="Decides", ordering="primary_metric")
    def primary(self, obj: Experiment) -> str:
        return METRICS[obj.primary_metric].title

    @display(description="Traffic")
    def traffic(self, obj: Experiment) -> str:
        return f"{obj.exposure:.0%}" if obj.state in LIVE else "–"

    @display(description="Since (UTC)", ordering="started_at")
    def since(self, obj: Experiment) -> str:
        return f"{obj.started_at:%Y-%m-%d %H:%M}" if obj.started_at else "–"

    @action(description="Start", icon="play_arrow", permissions=["change"])
    def start(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.start_experiment,
            title="Start {row}?",
            explanation="It begins with the first step of its ramp. What decides cannot be changed any more.",
            button="Start",
            done="{row} has begun.",
        )

    @action(description="Next step", icon="trending_up", permissions=["change"])
    def ramp(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.ramp_experiment,
            title="Take the next step of {row} now?",
            explanation="More traffic comes into it; nobody changes the arm. The controller does this by itself "
            "when a step has lasted and its guardrails hold.",
            button="Next step",
            done="{row} has more traffic.",
        )

    @action(description="Pause", icon="pause", permissions=["change"])
    def pause(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.pause_experiment,
            title="Pause {row}?",
            explanation="Everybody gets what the id means without it. The units keep their arms for later.",
            button="Pause",
            done="{row} is paused.",
        )

    @action(description="Resume", icon="play_arrow", permissions=["change"])
    def resume(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.resume_experiment,
            title="Go on with {row}?",
            explanation="At the step where it was paused.",
            button="Resume",
            done="{row} goes on.",
        )

    @action(description="Change shares", icon="balance", permissions=["change"])
    def shares(self, request: HttpRequest, object_id: str) -> HttpResponse:
        lines = [f"{arm.name} {arm.weight}" for arm in self._arms(request, object_id)]
        return self.confirmed(
            request,
            object_id,
            lambda row, *, weights, **why: actions.change_shares(row, weights, **why),
            title="Change the shares of {row}?",
            explanation="As few units as possible change the arm, and the measuring begins anew.",
            button="Change shares",
            done="{row} has other shares.",
            form_class=SharesForm,
            initial={"weights": "\n".join(lines)},
            again=True,
        )

    @action(description="Abort", icon="undo", permissions=["change"])
    def abort(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.roll_back_experiment,
            title="Abort {row}?",
            explanation="Everybody gets what the id means without it, for good.",
            button="Abort",
            done="{row} was rolled back.",
            danger=True,
        )

    @action(description="Conclude", icon="flag", permissions=["change"])
    def conclude(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            lambda row, *, winner="", **why: actions.conclude_experiment(row, winner=winner or None, **why),
            title="Conclude {row}?",
            explanation=f"It ends; nothing moves until a winner is shipped. {self._words(request, object_id)}",
            button="Conclude",
            done="{row} is concluded.",
            form_class=self._with_arms(WinnerForm, request, object_id),
            initial=self._leader(request, object_id),
        )

    @action(description="Ship winner", icon="rocket_launch", permissions=["change"])
    def ship(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            lambda row, *, alias="", **why: actions.ship_experiment(row, alias=alias or None, **why),
            title="Ship the winner of {row}?",
            explanation="The alias moves to the winner's version, and the experiment ends. "
            + self._words(request, object_id),
            button="Ship winner",
            done="{row} is shipped.",
            form_class=self._with_arms(ShipForm, request, object_id),
            initial=self._leader(request, object_id),
        )

    def _arms(self, request: HttpRequest, object_id: str) -> list[Arm]:
        row = self.get_object(request, object_id)
        return list(row.arms.all()) if row is not None else []

    def _with_arms(
        self, form_class: type[WinnerForm], request: HttpRequest, object_id: str
    ) -> type[WinnerForm]:
        arms = self._arms(request, object_id)
        choices = tuple((arm.name, f"{arm.name} ({arm.served_id})") for arm in arms)
        return type(form_class.__name__, (form_class,), {"arms": choices})

    def _words(self, request: HttpRequest, object_id: str) -> str:
        """What is known so far, for who is about to end it."""
        row = self.get_object(request, object_id)
        return f"What is known: {report_of(row).words}" if row is not None else ""

    def _leader(self, request: HttpRequest, object_id: str) -> dict[str, Any]:
        row = self.get_object(request, object_id)
        if row is None or row.state not in (*OPEN, State.CONCLUDED):
            return {}
        if row.winner is not None:
            return {"winner": row.winner.name}
        report = report_of(row)
        return {"winner": report.leader} if report.verdict == "better" else {}


def _lines(text: str) -> SafeString:
    return format_html_join(mark_safe("<br>"), "{}", ((line,) for line in text.splitlines()))


@admin.register(ExclusionGroup)
class GroupPage(ModelAdmin):
    """Exclusion groups."""

    list_display = ("name", "unit", "members")
    search_fields = ("name",)
    fields = ("name", "unit")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("experiments")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @display(description="Experiments")
    def members(self, obj: ExclusionGroup) -> str:
        return ", ".join(row.name for row in obj.experiments.all()) or "–"

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Through the action."""
        obj.pk = actions.create_group(obj.name, obj.unit, actor=f"user:{request.user}").pk
        obj._state.adding = False

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Through the action."""
        actions.delete_group(obj, actor=f"user:{request.user}")
