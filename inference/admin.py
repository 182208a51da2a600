"""Admin pages of what serves: deployments, replicas, nodes; and load and unload on a version's page."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import BigIntegerField, ExpressionWrapper, OuterRef, Prefetch, Subquery, Sum, TimeField
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTimeWidget

from inference import actions
from inference.admin_memory import memory_table
from inference.beats import read_beats
from inference.drafts import proposed_or_plain
from inference.memory import NODE_LOST_AFTER_S
from inference.models import ALIVE, Deployment, Device, Node, Replica, ReplicaState, Schedule, with_last_log
from inference.protocol import ReplicaBeat
from inference.rungs import ladders
from inference.status import Status, statuses
from inference.why import why_not_running
from registry.admin import VersionPage
from registry.admin_base import STATE_LABELS, ActionAdmin, ReadOnly, ReadOnlyInline, actor_of
from registry.admin_forms import BytesField
from registry.admin_parts import bar, facts_table, in_bytes, in_utc, label, log_text
from registry.models import ModelVersion, VersionState

NEARLY_FULL_PERCENT = 90
MAX_PROCESSES = 8
HEARD_LABELS = {"now": "success", "lost": "danger", "never": "warning", "leaving": "warning"}


class LoadUnload(ActionAdmin):
    """Status, load and unload, for pages of rows that have or are a version."""

    def version_of(self, row: Any) -> ModelVersion:
        """The version that a row of this page is about."""
        raise NotImplementedError

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The statuses of the whole page at once."""
        changelist = super().get_changelist_instance(request)
        found = statuses(self.version_of(row) for row in changelist.result_list)
        for row in changelist.result_list:
            row.found_status = found[self.version_of(row).pk]
        return changelist

    @display(description="Status")
    def status(self, obj: Deployment) -> SafeString:
        return label(self.found_status(obj).status, STATE_LABELS)

    @display(description="Reason")
    def status_reason(self, obj: Deployment) -> str:
        found = self.found_status(obj)
        return found.reason or found.stage or "–"

    def found_status(self, obj: Any) -> Status:
        """The list's status of this row, or the row's own on its page."""
        if not hasattr(obj, "found_status"):
            version = self.version_of(obj)
            obj.found_status = statuses([version])[version.pk]
        return obj.found_status

    @action(description="Load", icon="play_arrow", permissions=["change"])
    def load(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            lambda row, **why: actions.load(self.version_of(row), **why),
            title="Load {row}?",
            explanation="A node starts an engine for it, if its memory fits.",
            button="Load",
            done="{row} is being loaded.",
        )

    @action(description="Unload", icon="stop", permissions=["change"])
    def unload(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirmed(
            request,
            object_id,
            lambda row, **why: actions.unload(self.version_of(row), **why),
            title="Unload {row}?",
            explanation="Running requests finish first; new ones are refused from now on.",
            button="Unload",
            done="{row} is being unloaded.",
            danger=True,
        )


admin.site.unregister(ModelVersion)


@admin.register(ModelVersion)
class ServedVersionPage(LoadUnload, VersionPage):
    """A version's page with what the registry cannot know: whether it serves."""

    list_display = ("served_id", "state_label", "status", *VersionPage.list_display[2:])
    actions_detail = ("load", "unload", *VersionPage.actions_detail)
    SHOWN = ("state_label", "progress_bar", "status", "status_reason", "memory_of")

    def version_of(self, row: ModelVersion) -> ModelVersion:
        return row

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """Where a draft is looked for, only those that can guess."""
        if request.GET.get("field_name") == "draft":
            queryset = queryset.filter(state=VersionState.READY)
        return super().get_search_results(request, queryset, search_term)

    @display(description="Memory a replica")
    def memory_of(self, obj: ModelVersion) -> SafeString | str:
        if not obj.facts:
            return "Known once its files are here."
        deployment = Deployment.objects.filter(version=obj).first()
        return memory_table(deployment or proposed_or_plain(obj))


class ReplicaInline(ReadOnlyInline):
    """A deployment's replicas."""

    model = Replica
    fields = ("id", "device", "state", "on_rung", "reason", "created_at", "load_seconds")
    ordering = ("-created_at",)

    @display(description="Rung")
    def on_rung(self, obj: Replica) -> str:
        return rung_of(obj)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("device__node")


class ScheduleInline(TabularInline):
    """When it is kept hot; saved as a whole by the deployment's page."""

    model = Schedule
    verbose_name = "window"
    verbose_name_plural = "Keep hot"
    fields = ("days", "start", "end", "timezone")
    # Nobody plans by the second.
    formfield_overrides = {TimeField: {"widget": UnfoldAdminTimeWidget(format="%H:%M")}}
    extra = 0
    max_num = actions.MAX_SCHEDULES
    tab = True
    hide_title = True


@admin.register(Deployment)
class DeploymentPage(LoadUnload):
    """Deployments: engine options and bounds; load and unload."""

    list_display = ("name", "version", "status", "status_reason", "replicas", "max_streams", "kv_cache")
    list_select_related = ("version__model",)
    search_fields = ("name", "version__model__name")
    autocomplete_fields = ("version", "draft")
    actions_detail = ("load", "unload")
    inlines = (ScheduleInline, ReplicaInline)
    ENGINE = (
        ("dtype", "context_length"),
        ("max_streams", "kv_cache_bytes"),
        ("prefix_caching", "in_process"),
        ("max_batched_tokens", "tensor_parallel"),
        ("quantization", "guided_decoding"),
        ("speculation", "draft"),
        ("speculative_tokens",),
    )
    BOUNDS = (("queue_bound", "hold_bound"), "deadline_s")
    SHOWN = ("name", "version", "status", "status_reason", "why", "replicas", "on_ladder")
    PLACEMENT = ("placement",)
    SWAPPING = (
        ("on_demand", "pinned"),
        ("priority_class", "min_residency_s"),
        ("max_wait_s", "idle_ttl_s"),
    )
    STARTING = ("preload", "warmup_prompts")
    LABELS = {"warmup_prompts": "Warm-up prompts"}

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        shown = self._shown(obj) if obj else ("version",)
        return [
            (None, {"fields": shown}),
            ("Engine (for replicas that start from now on)", {"fields": self.ENGINE}),
            ("When memory is short", {"fields": (*self.PLACEMENT, *self.SWAPPING)}),
            ("When it starts", {"fields": self.STARTING}),
            ("Bounds", {"fields": (*self.BOUNDS, "reason")}),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self._shown(obj) if obj else ()

    @display(description="On its ladder")
    def on_ladder(self, obj: Deployment) -> SafeString:
        return render_to_string("admin/parts/ladder.html", ladders([obj])[obj.pk])

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        if db_field.name == "kv_cache_bytes":
            return BytesField(label="KV cache", help_text=f"{db_field.help_text}; like 20 GiB")
        found = super().formfield_for_dbfield(db_field, request, **options)
        if found is not None and db_field.name in self.LABELS:
            found.label = self.LABELS[db_field.name]
        return found

    def _shown(self, obj: Any) -> tuple[str, ...]:
        return (*self.SHOWN, "memory_of", *(("last_log",) if getattr(obj, "last_log", None) else ()))

    @display(description="Last lines of the load that failed")
    def last_log(self, obj: Any) -> SafeString:
        return log_text(obj.last_log)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A deployment goes with its version."""
        return False

    def version_of(self, row: Deployment) -> ModelVersion:
        return row.version

    def get_queryset(self, request: HttpRequest) -> Any:
        return with_last_log(super().get_queryset(request).select_related("version__model", "draft__model"))

    @display(description="Why it is not running")
    def why(self, obj: Deployment) -> SafeString | str:
        reasons = why_not_running(obj.version)
        return render_to_string("admin/parts/why.html", {"reasons": reasons}) if reasons else "–"

    @display(description="Memory a replica")
    def memory_of(self, obj: Deployment) -> SafeString:
        return memory_table(obj)

    @display(description="KV cache", ordering="kv_cache_bytes")
    def kv_cache(self, obj: Deployment) -> str:
        return in_bytes(obj.kv_cache_bytes)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """The schedules, through their action."""
        super().save_related(request, form, formsets, change)
        for formset in formsets:
            if formset.model is Schedule and formset.has_changed():
                rows = [
                    {name: one.cleaned_data[name] for name in ScheduleInline.fields}
                    for one in formset.forms
                    if one.cleaned_data.get("start") is not None and not one.cleaned_data.get("DELETE")
                ]
                actions.set_schedules(
                    form.instance,
                    rows,
                    actor=actor_of(request),
                    reason=form.cleaned_data.get("reason", ""),
                )

    def create_row(self, obj: Deployment, *, actor: str, reason: str, form: Any) -> Deployment:
        made = actions.ensure_deployment(obj.version, actor=actor)
        changes = {name: form.cleaned_data[name] for name in form.changed_data if name in actions.EDITABLE}
        return actions.configure(made, changes, actor=actor, reason=reason) if changes else made

    def update_row(
        self, obj: Deployment, *, actor: str, reason: str, changes: dict[str, Any], form: Any
    ) -> None:
        actions.configure(obj, changes, actor=actor, reason=reason)


@admin.register(Replica)
class ReplicaPage(ReadOnly, ModelAdmin):
    """Replicas, live: state from the database, load from their last beat."""

    list_display = (
        "__str__",
        "state_label",
        "on_rung",
        "device",
        "load_bar",
        "kv_bar",
        "speed",
        "first_token",
        "asked_at",
    )
    list_filter = ("state", "deployment")
    list_select_related = ("deployment", "device__node")
    list_per_page = 50
    fieldsets = (
        (None, {"fields": ("deployment", "device", "state_label", "reason", "times")}),
        ("Live", {"fields": ("live",)}),
        ("Log", {"fields": ("log",)}),
    )
    readonly_fields = ("deployment", "device", "state_label", "reason", "times", "live", "log")

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request).select_related("deployment", "device__node")
        # The list needs no log.
        return rows if request.resolver_match.kwargs.get("object_id") else rows.defer("log_tail")

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """One look into Redis for the whole page."""
        changelist = super().get_changelist_instance(request)
        alive = [row for row in changelist.result_list if row.state in ALIVE]
        beats = read_beats(str(row.pk) for row in alive)
        for row in changelist.result_list:
            row.beat = beats.get(str(row.pk))
        return changelist

    @display(description="State", ordering="state")
    def state_label(self, obj: Replica) -> SafeString:
        return label(obj.state, STATE_LABELS)

    @display(description="Rung", ordering="rung")
    def on_rung(self, obj: Replica) -> str:
        return rung_of(obj)

    @display(description="Streams")
    def load_bar(self, obj: Any) -> SafeString | str:
        beat = _beat(obj)
        if beat is None:
            return "–"
        text = f"{beat.running} running, {beat.waiting} waiting"
        return bar(beat.running, beat.max_streams, text)

    @display(description="KV cache")
    def kv_bar(self, obj: Any) -> SafeString | str:
        beat = _beat(obj)
        return (
            bar(beat.kv_usage, 1, f"{beat.kv_usage:.0%}", danger_above=NEARLY_FULL_PERCENT) if beat else "–"
        )

    @display(description="Tokens/s")
    def speed(self, obj: Any) -> str:
        beat = _beat(obj)
        return f"{beat.tokens_per_s:.1f}" if beat else "–"

    @display(description="TTFT")
    def first_token(self, obj: Any) -> str:
        beat = _beat(obj)
        return f"{beat.ttft_s * 1000:.0f}\u00a0ms" if beat and beat.ttft_s else "–"

    @display(description="Asked for (UTC)", ordering="created_at")
    def asked_at(self, obj: Replica) -> str:
        return in_utc(obj.created_at)

    @display(description="Place and times (UTC)")
    def times(self, obj: Replica) -> SafeString:
        return facts_table(
            [
                ("Reserved", in_bytes(obj.reserved_bytes)),
                ("Rung", rung_of(obj)),
                ("Host memory that it rests in", in_bytes(obj.host_bytes)),
                (
                    "Woke in",
                    ", ".join(f"{s:.2f} s from {rung}" for rung, s in obj.wake_seconds.items()) or "–",
                ),
                ("Asked for", in_utc(obj.created_at)),
                ("Ready", in_utc(obj.ready_at)),
                ("Loaded in", f"{obj.load_seconds:.1f} s" if obj.load_seconds is not None else "–"),
                ("Ended", in_utc(obj.ended_at)),
                ("Process", obj.pid or "–"),
            ]
        )

    @display(description="Last beat")
    def live(self, obj: Replica) -> SafeString | str:
        beat = _beat(obj)
        if beat is None:
            return "No beat: it is not running, or Redis is away."
        return facts_table(
            [
                ("Stage", beat.stage or beat.state),
                ("Form", beat.form or "vLLM's own"),
                ("Running", f"{beat.running} of {beat.max_streams}"),
                ("Waiting", beat.waiting),
                ("KV cache", f"{beat.kv_usage:.1%}"),
                ("Tokens/s", f"{beat.tokens_per_s:.1f}"),
                ("Time to first token", f"{beat.ttft_s * 1000:.0f} ms"),
                ("Time per token", f"{beat.tpot_s * 1000:.1f} ms"),
                ("Engine steps", f"{beat.steps:,}"),
                ("Memory", in_bytes(beat.rss_bytes)),
            ]
        )

    @display(description="Last lines")
    def log(self, obj: Replica) -> SafeString:
        return log_text(obj.log_tail)


class DeviceInline(ReadOnlyInline):
    """A node's devices."""

    model = Device
    fields = ("name", "kind", "total", "used", "memory", "processes_of")
    show_change_link = False
    tab = False

    def get_queryset(self, request: HttpRequest) -> Any:
        return with_reserved(super().get_queryset(request))

    @display(description="Has")
    def total(self, obj: Device) -> str:
        return in_bytes(obj.total_bytes)

    @display(description="In use")
    def used(self, obj: Device) -> str:
        return in_bytes(obj.used_bytes)

    @display(description="By process")
    def processes_of(self, obj: Device) -> str:
        largest = sorted(obj.processes.items(), key=lambda one: -one[1])[:MAX_PROCESSES]
        return ", ".join(f"{pid}: {in_bytes(count)}" for pid, count in largest) or "–"

    @display(description="Reserved by engines")
    def memory(self, obj: Any) -> SafeString:
        return memory_bar(obj)


@admin.register(Node)
class NodePage(ReadOnly, ModelAdmin):
    """Nodes and the memory of their devices."""

    list_display = ("name", "heard_label", "template_label", "memory", "revision")
    fields = ("name", "heard_label", "heard_at", "template_label", "revision")
    readonly_fields = fields
    inlines = (DeviceInline,)

    def get_queryset(self, request: HttpRequest) -> Any:
        devices = Prefetch("devices", with_reserved(Device.objects.all()))
        return super().get_queryset(request).prefetch_related(devices)

    @display(description="Heard of")
    def heard_label(self, obj: Node) -> SafeString:
        return label(_heard(obj), HEARD_LABELS)

    @display(description="Last heard of (UTC)", ordering="last_seen")
    def heard_at(self, obj: Node) -> str:
        return in_utc(obj.last_seen)

    @display(description="Engine template")
    def template_label(self, obj: Node) -> SafeString:
        return label("warm" if obj.template_ready else "cold", {"warm": "success", "cold": "warning"})

    @display(description="Memory")
    def memory(self, obj: Node) -> SafeString:
        bars = ((memory_bar(device, name=True),) for device in obj.devices.all())
        rows = format_html_join("", '<div style="margin: 0.25rem 0">{}</div>', bars)
        return format_html(
            "<div>{}</div>", rows
        )  # one block: a narrow list sets what is in a cell side by side


def _heard(obj: Node) -> str:
    if obj.leaving:
        return "leaving"
    if obj.last_seen is None:
        return "never"
    silent_s = (timezone.now() - obj.last_seen).total_seconds()
    return "now" if silent_s <= NODE_LOST_AFTER_S else "lost"


def with_reserved(devices: Any) -> Any:
    """Devices with what their living replicas reserve, as the first of their devices or as another one."""
    alive = Replica.objects.filter(state__in=ALIVE).order_by()

    def total(field: str) -> Any:
        sums = alive.filter(**{field: OuterRef("pk")}).values(field).annotate(sum=Sum("reserved_bytes"))
        return Coalesce(Subquery(sums.values("sum")), 0)

    reserved = ExpressionWrapper(total("device") + total("more_devices"), output_field=BigIntegerField())
    return devices.select_related("node").annotate(reserved=reserved)


def memory_bar(device: Any, *, name: bool = False) -> SafeString:
    """What is reserved of a device's budget, and what others have of it."""
    reserved, others = device.reserved, device.used_by_others_bytes
    words = f"{in_bytes(reserved)} of {in_bytes(device.budget_bytes)}"
    if others:
        words += f", others have {in_bytes(others)}"
    text = f"{device.name}: {words}" if name else words
    return bar(reserved + others, device.budget_bytes, text, danger_above=NEARLY_FULL_PERCENT)


def rung_of(obj: Replica) -> str:
    """Where it is on its ladder, and where it goes; what has ended is nowhere."""
    if obj.state not in ALIVE:
        return "–"
    return obj.rung if obj.rung == obj.wanted_rung else f"{obj.rung}, on its way to {obj.wanted_rung}"


def _beat(obj: Any) -> ReplicaBeat | None:
    """The list's beat of this row, or the row's own on its page."""
    if not hasattr(obj, "beat"):
        alive = obj.state in ALIVE and obj.state != ReplicaState.PENDING
        obj.beat = read_beats([str(obj.pk)]).get(str(obj.pk)) if alive else None
    return obj.beat
