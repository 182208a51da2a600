"""The routes' pages: what a route does now at the top; a change is shown before it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display

from mmserve.errors import MmserveError
from registry.admin_base import ASKED, ActionAdmin, ReadOnly, ReasonModelForm, actor_of
from registry.admin_forms import InARow, WordsField
from registry.lookup import find_candidate
from routing.actions import routes as actions
from routing.actions.scorers import use_scorer
from routing.core.replay import NOBODY
from routing.core.route import Cause, Policy, RouteEntry
from routing.core.scorer import TRAITS
from routing.effect import REPLAYED, Effect, effect_of, preview_of
from routing.models.routes import MAX_CANDIDATES, Route, RouteCandidate, TrainedScorer
from routing.route_entries import entry_of
from routing.situation import situation

CONFIRMED = "_confirmed"
MS = 1000


class NeedsConfirmation(Exception):
    """The change is good; whoever makes it should see first what it does. Raised inside the transaction."""

    def __init__(self, draft: RouteEntry, *, new: bool) -> None:
        super().__init__(draft.id)
        self.draft = draft
        self.new = new


class RouteForm(ReasonModelForm):
    """A route."""

    require = WordsField(
        required=False,
        help_text="Capabilities and tags that a candidate must have, with commas between them: json, region=eu.",
    )
    no_fallback_on = forms.MultipleChoiceField(
        label="Nobody else is tried after",
        required=False,
        choices=[(cause.value, cause.value) for cause in Cause],
        widget=InARow,
    )
    expected_revision = forms.IntegerField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.fields["expected_revision"].initial = self.instance.revision


class CandidateForm(forms.ModelForm):
    """One candidate."""

    def clean_target(self) -> str:
        """Checked here so that all that is wrong with a page is told at once."""
        target: str = self.cleaned_data["target"]
        try:
            find_candidate(target)
        except MmserveError as error:
            raise forms.ValidationError(error.message) from error
        return target


class CandidateFormSet(forms.BaseInlineFormSet):
    """The candidates of one route."""

    def clean(self) -> None:
        """The whole list, by what the form says of the route."""
        super().clean()
        if any(self.errors):
            return
        try:
            actions.check_serves(self.instance, _lines_in(self))
        except MmserveError as error:
            raise forms.ValidationError(error.message.removeprefix("candidates: ")) from error


class CandidateInline(TabularInline):
    """The candidates, in the order of priority."""

    model = RouteCandidate
    form = CandidateForm
    formset = CandidateFormSet
    fields = ("position", "target", "weight", "note")
    extra = 1
    max_num = MAX_CANDIDATES
    tab = False


@admin.register(Route)
class RoutePage(ActionAdmin):
    """Routes."""

    list_display = ("name", "state", "policy", "candidate_list", "updated_at")
    list_filter = ("policy", "enabled")
    search_fields = ("name", "description", "candidates__target")
    form = RouteForm
    inlines = (CandidateInline,)
    change_form_outer_before_template = "admin/routes/effect.html"

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("candidates")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return [
            (None, {"fields": (("name", "enabled"), "policy", "description")}),
            (
                "What balanced weighs",
                {"fields": (("weight_quality", "weight_cost"), ("weight_latency", "weight_load"))},
            ),
            (
                "What a candidate must keep (empty: nothing)",
                {"fields": ("require", ("max_cost_usd", "max_ttft_ms"), ("max_tpot_ms", "min_context"))},
            ),
            ("When a candidate fails", {"fields": (("first_token_ms", "hedge_percent"), "no_fallback_on")}),
            ("Why", {"fields": ("reason", "expected_revision")}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """A name is for ever: clients ask by it."""
        return ("name",) if obj else ()

    @display(description="State", label={"on": "success", "off": "default"})
    def state(self, obj: Route) -> str:
        return "on" if obj.enabled else "off"

    @display(description="Candidates")
    def candidate_list(self, obj: Route) -> str:
        return ", ".join(line.target for line in obj.candidates.all()) or "–"

    def delete_row(self, obj: Route, *, actor: str, reason: str) -> None:
        actions.delete_route(obj, actor=actor, reason=reason)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """The route's effect above its form."""
        context = dict(extra_context or {})
        route = self.get_object(request, object_id)
        if route is not None and request.method == "GET":
            entry = entry_of(route, _lines_of(route))
            context["effect"] = _effect_rows(effect_of(entry, situation()))
            context["policy"] = route.get_policy_display()
            context["hints"] = _hints(route)
        return super().change_view(request, object_id, form_url, context)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """A change that was not confirmed yet is undone, and shown."""
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except NeedsConfirmation as asked:
            return self._preview(request, asked.draft, new=asked.new)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """With its candidates, in save_related."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The route and its candidates are one change."""
        reason = form.cleaned_data.get("reason", "")
        lines = _lines_in(formsets[0]) if formsets else []
        changes = {name: form.cleaned_data[name] for name in form.changed_data if name not in ASKED}
        before = form.instance.pk and Route.objects.get(pk=form.instance.pk)
        if before:
            route = actions.update_route(
                before,
                actor=actor_of(request),
                reason=reason,
                candidates=lines,
                expected_revision=form.cleaned_data.get("expected_revision"),
                **changes,
            )
            changed = route is not before
        else:
            fields = {name: form.cleaned_data[name] for name in actions.FIELDS}
            route = actions.create_route(
                form.cleaned_data["name"],
                actor=actor_of(request),
                reason=reason,
                candidates=lines,
                **fields,
            )
            changed = True
        if changed and CONFIRMED not in request.POST:
            raise NeedsConfirmation(entry_of(route, _lines_of(route)), new=not before)
        form.instance.pk = route.pk
        form.instance._state.adding = False
        super().save_related(request, form, formsets, change)

    def _preview(self, request: HttpRequest, draft: RouteEntry, *, new: bool) -> HttpResponse:
        found = preview_of(draft, situation(REPLAYED, draft.id))
        before, after = found.replay.before, found.replay.after
        fields = [(name, value) for name in request.POST for value in request.POST.getlist(name)]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": f"What {draft.id} would {'do' if new else 'become'}",
            "name": draft.id,
            "is_new": new,
            "real": found.real,
            "requests": found.replay.requests,
            "moved": found.replay.moved_share,
            "moved_count": found.replay.moved,
            "shares": [
                ("nobody: refused" if name == NOBODY else name, 100 * old, 100 * share)
                for name, old, share in found.rows
                if share or not new
            ],
            "figures": [
                ("Cost of a request", _dollars(before.cost_usd), _dollars(after.cost_usd)),
                ("Predicted TTFT", _ms(before.ttft_s), _ms(after.ttft_s)),
                ("Predicted TPOT", _ms(before.tpot_s), _ms(after.tpot_s)),
            ],
            "effect": _effect_rows(found.draft),
            "fields": [(name, value) for name, value in fields if name != "csrfmiddlewaretoken"],
            "confirmed": CONFIRMED,
        }
        return TemplateResponse(request, "admin/routes/preview.html", context)


@admin.register(TrainedScorer)
class ScorerPage(ReadOnly, ModelAdmin):
    """Scorers that router_train made: their weights and how well they did."""

    list_display = ("number", "state", "rows", "gain", "created_at")
    actions_detail = ("use", "stop_using")
    change_form_outer_before_template = "admin/routes/scorer.html"
    fields = ("number", "rows", "created_at")

    @display(description="State", label={"in use": "success", "kept": "default"})
    def state(self, obj: TrainedScorer) -> str:
        return "in use" if obj.in_use else "kept"

    @display(description="Better than the mean by")
    def gain(self, obj: TrainedScorer) -> str:
        gain = obj.evaluation.get("gain")
        return "–" if gain is None else f"{100 * gain:.1f}%"

    def has_use_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Whoever may change routes."""
        return request.user.has_perm("routing.change_route")

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Its weights, trait by trait."""
        row = self.get_object(request, object_id)
        context = dict(extra_context or {})
        if row is not None:
            names = row.traits or list(TRAITS)
            context["traits"] = names
            context["weights"] = sorted(row.weights.items())
            context["evaluation"] = row.evaluation
        return super().change_view(request, object_id, form_url, context)

    @action(description="Use it", icon="check", permissions=["use"])
    def use(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return ActionAdmin.confirmed(
            self,  # type: ignore[arg-type]
            request,
            object_id,
            use_scorer,
            title="Use {row}?",
            explanation="From the next request on it judges quality in every balanced route, and in auto.",
            button="Use it",
            done="{row} is in use.",
        )

    @action(description="Stop using", icon="close", permissions=["use"])
    def stop_using(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return ActionAdmin.confirmed(
            self,  # type: ignore[arg-type]
            request,
            object_id,
            _stop_using,
            title="Stop using {row}?",
            explanation="Quality is then what is assumed of each version by its size.",
            button="Stop using",
            done="No scorer is in use.",
        )

    def row_url(self, object_id: Any) -> str:
        """The page of one row."""
        return ActionAdmin.row_url(self, object_id)  # type: ignore[arg-type]


def _stop_using(row: TrainedScorer, *, actor: str, reason: str) -> None:
    use_scorer(None, actor=actor, reason=reason)


def _lines_of(route: Route) -> list[tuple[str, float, str]]:
    return list(RouteCandidate.objects.filter(route=route).values_list("target", "weight", "note"))


def _hints(route: Route) -> list[str]:
    """What is allowed, and may not be what was meant."""
    idle = [line.target for line in route.candidates.all() if not line.weight]
    if not idle:
        return []
    names = ", ".join(idle)
    if route.policy == Policy.WEIGHTED:
        return [f"Weight 0: {names} gets a request only when those with a weight cannot serve it."]
    return [f"Weight 0: {names} is chosen all the same; only the policy weighted looks at weights."]


def _lines_in(formset: Any) -> list[dict[str, Any]]:
    """The lines that stay, in the order of their positions."""
    kept = [
        (data["position"], place, data)
        for place, form in enumerate(formset.forms)
        if (data := form.cleaned_data) and data.get("target") and not data.get("DELETE")
    ]
    return [
        {name: data[name] for name in actions.CANDIDATE_FIELDS}
        for _, _, data in sorted(kept, key=lambda one: one[:2])
    ]


def _effect_rows(effect: Effect) -> dict[str, Any]:
    rows: Iterable[dict[str, Any]] = [
        {
            "id": one.id,
            "served_id": one.served_id,
            "note": one.note,
            "eligible": one.eligible,
            "cold": not one.scores.get("ready"),
            "reasons": one.reasons,
            "share": 100 * effect.shares.get(one.served_id, 0.0),
            "figures": _figures(one.scores),
        }
        for one in sorted(
            effect.candidates, key=lambda one: (not one.eligible, -effect.shares.get(one.served_id, 0.0))
        )
    ]
    return {"rows": rows, "problems": effect.problems, "refused": 100 * effect.refused}


def _figures(scores: Mapping[str, float]) -> tuple[str, ...]:
    """TTFT, TPOT, cost, quality and load; what does not run has made no token and has no load."""
    return (
        _ms(scores.get("ttft_s")),
        _ms(scores.get("tpot_s")),
        _dollars(scores.get("cost_usd")),
        f"{scores.get('quality', 0.0):.2f}",
        f"{scores.get('load', 0.0):.0%}" if scores.get("ready") else "–",
    )


def _ms(seconds: float | None) -> str:
    """Of 0 nothing was measured yet."""
    if not seconds:
        return "–"
    return f"{seconds * MS:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _dollars(amount: float | None) -> str:
    return "–" if amount is None else f"${amount:.6f}"
