"""Admin pages of memory: what was predicted and what was measured, part by part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import display

from inference.capacity.calibration import MEASURED, ONLY_WHERE_IT_IS, grouped
from inference.memory import estimate_for, kv_cost_of
from inference.models import Deployment, Device, LoadObservation
from registry.admin_base import ReadOnly
from registry.admin_parts import facts_table, in_bytes, in_utc

COLUMNS = ("", "Estimated", "Last load")
NAMES = {
    "draft_weights": "draft's weights",
    "kv_cache": "KV cache",
    "cuda_graphs": "CUDA graphs",
    "context": "CUDA context",
}
# From here on an estimate is worth a look.
NOTABLE_ERROR = 0.05


def memory_table(deployment: Deployment) -> SafeString:
    """By kind of device: what a replica will take, beside what the last one took."""
    kinds = list(Device.objects.order_by("kind").values_list("kind", flat=True).distinct()) or ["cpu"]
    return render_to_string(
        "admin/parts/memory.html", {"columns": COLUMNS, "kinds": [_of_kind(deployment, one) for one in kinds]}
    )


def _of_kind(deployment: Deployment, kind: str) -> dict[str, Any]:
    found = estimate_for(deployment, kind)
    last = LoadObservation.objects.filter(version=deployment.version_id, device_kind=kind).first()
    rows = parts_rows(found.parts(), last.measured if last else {})
    how = "as earlier loads took it" if found.calibrated else "from the checkpoint's config and headers"
    many = f" on each of {deployment.tensor_parallel} devices" if deployment.tensor_parallel > 1 else ""
    missed = f"; the last load's was off by {last.error:+.1%}" if last else ""
    return {"caption": f"{kind}{many}, {how}{missed}{_streams(deployment)}", "rows": rows}


def _streams(deployment: Deployment) -> str:
    """How many streams of the whole context the cache holds."""
    facts = deployment.version.facts
    context = deployment.context_length or facts.get("context_length")
    cost = kv_cost_of(deployment)
    if cost is None or not context or not (a_stream := cost.stream_bytes(context)):
        return ""
    return f"; the cache holds {deployment.kv_cache_bytes // a_stream:,} streams of {context:,} tokens"


def parts_rows(predicted: dict[str, int], measured: dict[str, int]) -> list[tuple[str, str, str]]:
    """A row a part, and the total; of several parts that are measured as one, the last says how much."""
    rows = []
    for name, members in _members(predicted):
        if name in ONLY_WHERE_IT_IS and not (predicted.get(name) or measured.get(name)):
            continue
        taken = measured.get(name)
        for member in members[:-1]:
            rows.append((named(member), in_bytes(predicted[member]), f"in {named(name)}"))
        last = members[-1]
        shown = "–" if taken is None else in_bytes(taken)
        rows.append((named(last), in_bytes(predicted.get(last, 0)), shown))
    total = in_bytes(sum(measured.values())) if measured else "–"
    return [*rows, ("total", in_bytes(sum(predicted.values())), total)]


def _members(predicted: dict[str, int]) -> Iterable[tuple[str, list[str]]]:
    for name, members in MEASURED.items():
        yield name, [one for one in reversed(members) if one in predicted and one != name] + [name]


def named(part: str) -> str:
    """A part as people write it."""
    return NAMES.get(part, part)


@admin.register(LoadObservation)
class LoadObservationPage(ReadOnly, ModelAdmin):
    """What loads were predicted to take, and took."""

    list_display = (
        "version",
        "device_kind",
        "quantized",
        "predicted_total",
        "measured_total",
        "off",
        "taken_at",
    )
    list_filter = ("device_kind", "quantization")
    list_select_related = ("version__model",)
    search_fields = ("version__model__name",)
    list_per_page = 50
    fields = (
        "version",
        "device_kind",
        "quantized",
        "off_by",
        "peak_streams",
        "taken_at",
        "memory",
        "with_options",
    )
    readonly_fields = fields

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).select_related("version__model")

    @display(description="Quantized on load")
    def quantized(self, obj: LoadObservation) -> str:
        return obj.quantization or "–"

    @display(description="Predicted")
    def predicted_total(self, obj: LoadObservation) -> str:
        return in_bytes(sum(grouped(obj.predicted).values()))

    @display(description="Measured")
    def measured_total(self, obj: LoadObservation) -> str:
        return in_bytes(sum(obj.measured.values()))

    @display(description="Off by", label={"close": "success", "off": "warning"}, ordering="error")
    def off(self, obj: LoadObservation) -> tuple[str, str]:
        return ("close" if abs(obj.error) <= NOTABLE_ERROR else "off", f"{obj.error:+.1%}")

    @display(description="Off by")
    def off_by(self, obj: LoadObservation) -> str:
        way = "too much" if obj.error > 0 else "too little"
        return f"{obj.error:+.1%}: {way} was predicted" if obj.error else "nothing"

    @display(description="Loaded with")
    def with_options(self, obj: LoadObservation) -> SafeString:
        return facts_table(
            (name, in_bytes(value) if name.endswith("_bytes") else value)
            for name, value in sorted(obj.options.items())
        )

    @display(description="Loaded at (UTC)", ordering="at")
    def taken_at(self, obj: LoadObservation) -> str:
        return in_utc(obj.at)

    @display(description="Memory")
    def memory(self, obj: LoadObservation) -> SafeString:
        kinds = [{"caption": "on each of its devices", "rows": parts_rows(obj.predicted, obj.measured)}]
        return render_to_string(
            "admin/parts/memory.html", {"columns": ("", "Predicted", "Measured"), "kinds": kinds}
        )
