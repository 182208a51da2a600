"""Admin pages of the registry: models and versions; aliases and events have modules of their own."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import action, display

from mmserve.errors import ModelNotFound
from registry import (
    actions,
    admin_aliases,  # noqa: F401 - registers its page
    history,
)
from registry.actions.aliases import FIRST_ALIAS
from registry.admin_base import STATE_LABELS, ActionAdmin, ReadOnlyInline
from registry.admin_events import OnTimeline
from registry.admin_forms import DuplicateForm, ModelForm, PromoteForm, VersionForm
from registry.admin_parts import (
    bar,
    facts_table,
    in_bytes,
    in_red,
    in_short,
    label,
    links_list,
    markdown,
    progress_bars,
)
from registry.lookup import find, find_candidate
from registry.models import PUBLISHED, Alias, Model, ModelVersion, VersionFile, VersionState

FACT_LABELS = {
    "architecture": "Architecture",
    "parameters": "Parameters",
    "weight_bytes": "Weights",
    "dtype": "Stored as",
    "quantization": "Quantization",
    "context_length": "Context (tokens)",
    "sliding_window": "Sliding window (tokens)",
    "layers": "Layers",
    "hidden_size": "Hidden size",
    "intermediate_size": "Intermediate size",
    "heads": "Attention heads",
    "kv_heads": "KV heads",
    "head_size": "Head size",
    "vocabulary": "Vocabulary",
    "tied_embeddings": "Tied embeddings",
    "chat_template": "Chat template",
    "tools": "Template knows tools",
    "experts": "Experts",
    "vision": "Sees images",
    "embedding": "Embeds",
    "tokenizer": "Tokenizer",
    "languages": "Languages",
    "custom_code": "Wants its own code",
}
# Fields of a model that let its files run code, and how the pages call them, in red.
RISKS = {"trust_remote_code": "remote code", "allow_pickle": "pickle weights"}
TIMELINE_EVENTS = 200
# Why a fallback stands for nobody.
NOBODY = '<span class="text-red-700 dark:text-red-400">{}</span>'
# In which states a version's page offers an action.
OFFERED = {
    "load": (VersionState.READY,),
    "unload": (VersionState.READY,),
    "import_files": (VersionState.REGISTERED, VersionState.FETCHING, VersionState.FAILED),
    "cancel": (VersionState.FETCHING,),
    "promote": (VersionState.READY,),
    "verify": PUBLISHED,
    "archive": (VersionState.REGISTERED, VersionState.FAILED, VersionState.READY),
    "restore": (VersionState.ARCHIVED,),
}


class VersionInline(ReadOnlyInline):
    """A model's versions."""

    model = ModelVersion
    fields = ("version", "state", "state_reason", "ready_at")


class AliasInline(ReadOnlyInline):
    """A model's aliases."""

    model = Alias
    fields = ("name", "version", "is_default", "revision", "updated_at")


class FileInline(ReadOnlyInline):
    """A version's manifest."""

    model = VersionFile
    fields = ("path", "size", "sha256")
    show_change_link = False

    @display(description="Size")
    def size(self, obj: VersionFile) -> str:
        return in_bytes(obj.size_bytes)


@admin.register(Model)
class ModelPage(ActionAdmin):
    """Models."""

    list_display = ("name", "display_name", "version_count", "meant", "owner", "team", "tags_of", "risks")
    list_filter = ("owner", "team", "trust_remote_code", "allow_pickle")
    search_fields = ("name", "display_name", "description", "tags")
    form = ModelForm
    inlines = (VersionInline, AliasInline)
    DESCRIBING = ("display_name", "description", "owner", "team", "licence", "tags", "links")
    CHAIN = ("fallbacks", "first_token_ms", "no_fallback_on")
    TRUST = ("trust_remote_code", "allow_pickle")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        described = ("name", "slug", "risks", "described", "linked") if obj else ("name",)
        failing = ("stand_ins",) if obj else ()
        return [
            (None, {"fields": (*described, *self.DESCRIBING)}),
            ("When it fails", {"fields": (*failing, *self.CHAIN)}),
            ("Trust: both let files run code on this machine", {"fields": (self.TRUST,)}),
            ("Why", {"fields": ("reason",)}),
        ]

    @display(description="Tags")
    def tags_of(self, obj: Model) -> str:
        return ", ".join(obj.tags) or "–"

    @display(description="Runs foreign code")
    def risks(self, obj: Model) -> SafeString | str:
        return in_red(risks_of(obj))

    @display(description="Description, as shown")
    def described(self, obj: Model) -> SafeString | str:
        return markdown(obj.description)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What the aliases meant at a time, and what happened until then."""
        row = self.get_object(request, object_id)
        if row is None:
            raise Http404(f"There is no model {object_id}.")
        at, error = timezone.now(), ""
        if asked := request.GET.get("at", ""):
            found = history.parse_moment(asked)
            at = found or at
            error = "" if found else f"{asked[:40]!r} is no date and time"
        events = history.events_of(row.name).filter(at__lte=at)[: TIMELINE_EVENTS + 1]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": f"Timeline of {row}",
            "row": row,
            "original": row,
            "back": self.row_url(object_id),
            "at": at,
            "error": error,
            "meaning": history.meaning_at(row.name, at),
            "events": events[:TIMELINE_EVENTS],
            "more": len(events) > TIMELINE_EVENTS,
        }
        return TemplateResponse(request, "admin/timeline.html", context)

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request)
        return rows.prefetch_related("aliases__version").annotate(number=Count("versions"))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("name", "slug", "risks", "described", "linked", "stand_ins") if obj else ()

    @display(description="Who stands in for it now")
    def stand_ins(self, obj: Model) -> SafeString | str:
        return facts_table((target, _meaning(target)) for target in obj.fallbacks) if obj.fallbacks else "–"

    @display(description="Links, as shown")
    def linked(self, obj: Model) -> SafeString | str:
        return links_list(obj.links)

    @display(description="Versions", ordering="number")
    def version_count(self, obj: Any) -> int:
        return obj.number

    @display(description="Default")
    def meant(self, obj: Model) -> str:
        default = next((alias for alias in obj.aliases.all() if alias.is_default), None)
        return f"{default.name} → {default.version.version}" if default else "–"

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What goes with each model."""
        going: list[Any] = []
        for obj in objs:
            rows = (*obj.versions.select_related("model"), *obj.aliases.select_related("model"))
            going += [str(obj), [str(row) for row in rows]]
        return going, {"models": len(objs)}, set(), []

    def create_row(self, obj: Model, *, actor: str, reason: str, form: Any) -> Model:
        fields = {name: getattr(obj, name) for name in (*self.DESCRIBING, *self.CHAIN, *self.TRUST)}
        return actions.register_model(obj.name, actor=actor, reason=reason, **fields)

    def update_row(self, obj: Model, *, actor: str, reason: str, changes: dict[str, Any], form: Any) -> None:
        actions.update_model(obj, actor=actor, reason=reason, **changes)

    def delete_row(self, obj: Model, *, actor: str, reason: str) -> None:
        actions.delete_model(obj, actor=actor, reason=reason)


@admin.register(ModelVersion)
class VersionPage(OnTimeline, ActionAdmin):
    """Versions: facts, files, prices; import, promote, archive."""

    list_display = (
        "served_id",
        "state_label",
        "progress_bar",
        "parameters",
        "weights",
        "context",
        "aliases_of",
    )
    # A drop-down of ten thousand models would be no help.
    list_filter = ("state", ("model", AutocompleteSelectFilter))
    list_select_related = ("model",)
    search_fields = ("model__name", "version", "source_uri")
    autocomplete_fields = ("model",)
    form = VersionForm
    inlines = (FileInline,)
    actions_detail = (
        *("import_files", "cancel", "promote", "duplicate"),
        {"title": "More", "items": ["verify", "archive", "restore"]},
    )
    SHOWN: tuple[str, ...] = ("state_label", "progress_bar", "state_reason")
    PRICE_ROWS = (("price_input", "price_cached_input"), ("price_output", "price_device_hour"))
    PRICES = tuple(name for row in PRICE_ROWS for name in row)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("model").prefetch_related("aliases")

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """``name@version``, as pages show it, is looked for as its two parts."""
        return super().get_search_results(request, queryset, search_term.replace("@", " "))

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The rows know that they stand in a list."""
        changelist = super().get_changelist_instance(request)
        for row in changelist.result_list:
            row.in_a_list = True
        return changelist

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        asked = ("model", "version", "source_uri", "description", "tags", "engine_options", "reason")
        if obj is None:
            return [
                (None, {"fields": asked}),
                ("Prices (per million tokens, or per device-hour)", {"fields": self.PRICE_ROWS}),
            ]
        return [
            (
                None,
                {"fields": ("model", "version", *self.SHOWN, "risks", "source_uri", "engine_options")},
            ),
            ("Facts", {"fields": ("facts_of",)}),
            (
                "What it can do and costs",
                {"fields": ("described", "description", "capabilities", "tags", *self.PRICE_ROWS, "reason")},
            ),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        shown = (*self.SHOWN, "facts_of", "risks", "described")
        if obj is None:
            return shown
        frozen = ("engine_options",) if obj.state in PUBLISHED else ()
        return (*shown, "model", "version", "source_uri", *frozen)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """The buttons that make sense in the version's state; the actions themselves check again."""
        state = ModelVersion.objects.filter(pk=object_id).values_list("state", flat=True).first()
        hidden = {name for name, states in OFFERED.items() if state not in states}
        offered = super().get_actions_detail(request, object_id)
        return [one for one in offered if one.method.original_function_name not in hidden]

    @display(description="Version", ordering="model__name")
    def served_id(self, obj: ModelVersion) -> str:
        return obj.served_id

    @display(description="State", ordering="state")
    def state_label(self, obj: ModelVersion) -> SafeString:
        return label(obj.state, STATE_LABELS)

    @display(description="Progress")
    def progress_bar(self, obj: ModelVersion) -> SafeString | str:
        progress = obj.progress
        if obj.state != VersionState.FETCHING or not progress:
            return "–"
        done, total = progress.get("done_bytes") or 0, progress.get("total_bytes")
        words = [progress["stage"]]
        if total:
            words.append(f"{in_bytes(done)} of {in_bytes(total)}")
        if progress.get("bytes_per_s"):
            words.append(f"{in_bytes(progress['bytes_per_s'])}/s")
        if progress.get("eta_s") is not None:
            words.append(f"{progress['eta_s']:.0f} s left")
        files = [
            bar(file["done_bytes"], file["total_bytes"], f"{file['path']}: {in_bytes(file['total_bytes'])}")
            for file in progress.get("files", ())
        ]
        # A list shows many: only a version's own page looks again by itself.
        watched = not hasattr(obj, "in_a_list")
        return progress_bars(obj.pk, [bar(done, total, ", ".join(words)), *files], watched=watched)

    @display(description="Runs foreign code")
    def risks(self, obj: ModelVersion) -> SafeString | str:
        return in_red(risks_of(obj.model))

    @display(description="Description, as shown")
    def described(self, obj: ModelVersion) -> SafeString | str:
        return markdown(obj.description)

    @display(description="Parameters")
    def parameters(self, obj: ModelVersion) -> str:
        return in_short(obj.facts.get("parameters"))

    @display(description="Weights")
    def weights(self, obj: ModelVersion) -> str:
        return in_bytes(obj.facts.get("weight_bytes"))

    @display(description="Context")
    def context(self, obj: ModelVersion) -> str:
        return in_short(obj.facts.get("context_length"))

    @display(description="Aliases")
    def aliases_of(self, obj: ModelVersion) -> str:
        return ", ".join(alias.name for alias in obj.aliases.all()) or "–"

    @display(description="Read from the files")
    def facts_of(self, obj: ModelVersion) -> SafeString | str:
        if not obj.facts:
            return "Known once the files are here."
        return facts_table((label, _fact(name, obj.facts.get(name))) for name, label in FACT_LABELS.items())

    def create_row(self, obj: ModelVersion, *, actor: str, reason: str, form: Any) -> ModelVersion:
        names = ("description", "tags", "engine_options", *self.PRICES)
        fields = {name: getattr(obj, name) for name in names}
        return actions.register_version(
            obj.model, obj.version, obj.source_uri, actor=actor, reason=reason, **fields
        )

    def update_row(
        self, obj: ModelVersion, *, actor: str, reason: str, changes: dict[str, Any], form: Any
    ) -> None:
        actions.update_version(obj, actor=actor, reason=reason, **changes)

    def delete_row(self, obj: ModelVersion, *, actor: str, reason: str) -> None:
        actions.delete_version(obj, actor=actor, reason=reason)

    @action(description="Import files", icon="download", permissions=["change"])
    def import_files(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.import_version,
            title="Import the files of {row}?",
            explanation="An ops job fetches them from the source, converts and hashes them. It also retries "
            "an import that failed.",
            button="Import",
            done="{row} is being fetched.",
        )

    @action(description="Cancel", icon="cancel", permissions=["change"])
    def cancel(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.cancel_import,
            title="Cancel the import of {row}?",
            explanation="What was fetched is kept: a later import goes on from there.",
            button="Cancel the import",
            done="The import of {row} was cancelled.",
            danger=True,
        )

    @action(description="Duplicate", icon="content_copy", permissions=["change"])
    def duplicate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.get_object(request, object_id)
        return self.confirmed(
            request,
            object_id,
            actions.duplicate_version,
            title="Duplicate {row}?",
            explanation="A new version of the same files, with other engine options. A version that is ready "
            "never changes itself.",
            button="Duplicate",
            done="{made} is a duplicate of {row}.",
            again=True,
            form_class=DuplicateForm,
            initial={"engine_options": row.engine_options if row else {}},
        )

    @action(description="Verify", icon="fact_check", permissions=["change"])
    def verify(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.repair_version,
            title="Verify the files of {row}?",
            explanation="An ops job hashes each of them. What has rotted is fetched from the source again; it must "
            "be what the manifest says. The timeline shows what was found.",
            button="Verify",
            done="The files of {row} are being verified.",
        )

    @action(description="Promote", icon="publish", permissions=["change"])
    def promote(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = self.get_object(request, object_id)
        aliases = list(row.model.aliases.select_related("version")) if row else []
        return self.confirmed(
            request,
            object_id,
            actions.promote,
            title="Promote {row}?",
            explanation="The alias moves to this version: clients that ask for it get this one from now on, and so do "
            f"those that ask for the bare name, if it is the default one. {_meanings(aliases)}",
            button="Promote",
            done="{made} means {row} now.",
            form_class=PromoteForm,
            initial={
                "alias": next((alias.name for alias in aliases if alias.is_default), FIRST_ALIAS),
                "seen": {alias.name: alias.revision for alias in aliases},
            },
        )

    @action(description="Archive", icon="archive", permissions=["change"])
    def archive(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.archive_version,
            title="Archive {row}?",
            explanation="It stays for the record and cannot be served any more.",
            button="Archive",
            done="{row} is archived.",
            danger=True,
        )

    @action(description="Restore", icon="unarchive", permissions=["change"])
    def restore(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            actions.restore_version,
            title="Restore {row}?",
            explanation="It becomes ready again.",
            button="Restore",
            done="{row} is ready again.",
        )


def _meanings(aliases: list[Alias]) -> str:
    if not aliases:
        return "The model has no alias yet; its first one becomes the default."
    words = [
        f"{alias.name}{' (default)' if alias.is_default else ''} means {alias.version.version}"
        for alias in aliases
    ]
    return f"Now {', '.join(words)}; another name makes another alias."


def risks_of(model: Model) -> list[str]:
    """What the operator allowed the model's files to do."""
    return [words for field, words in RISKS.items() if getattr(model, field)]


def _meaning(target: str) -> SafeString | str:
    """The version that a fallback stands for now, or, in red, why it stands for none."""
    try:
        find_candidate(target)
        found = find(target)
    except ModelNotFound as error:
        return format_html(NOBODY, error.message)
    if isinstance(found, Model):
        found = found.aliases.filter(is_default=True).select_related("version__model").first() or found
    if isinstance(found, Model):
        return format_html(NOBODY, "It has no default version.")
    return found.version.served_id if isinstance(found, Alias) else found.served_id


def _fact(name: str, value: Any) -> str:
    if value is None:
        return "none" if name in ("quantization", "sliding_window") else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "weight_bytes":
        return in_bytes(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return f"{value:,}" if isinstance(value, int) else str(value)
