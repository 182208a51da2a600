"""The admin's first page: models with their status, memory, recent events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.safestring import SafeString

from inference.admin import memory_bar, with_reserved
from inference.beats import read_beats
from inference.model_objects import with_versions
from inference.models import ALIVE, Deployment, Device, Replica
from inference.protocol import ReplicaBeat
from inference.revisions import applied
from inference.status import furthest, statuses
from inference.swapping import waiting_jobs
from registry.admin_base import STATE_LABELS
from registry.admin_parts import in_bytes, in_short
from registry.models import Event, Model

MAX_MODELS = 50
MAX_EVENTS = 12


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """unfold's DASHBOARD_CALLBACK; nothing for somebody who may see nothing."""
    if not request.user.has_perms(["registry.view_model", "inference.view_device", "registry.view_event"]):
        return context
    context["title"] = "Dashboard"
    replicas = list(Replica.objects.filter(state__in=ALIVE))
    beats = read_beats(str(row.pk) for row in replicas)
    context["figures"] = [
        ("Models", Model.objects.count()),
        ("Replicas ready", sum(row.state == "ready" for row in replicas)),
        ("Requests running", sum(beat.running for beat in beats.values())),
        ("Requests waiting", _waiting(beats.values())),
        ("Configuration applied", _applied()),
        ("Tokens/s", f"{sum(beat.tokens_per_s for beat in beats.values()):.0f}"),
    ]
    context["models"] = _models()
    context["devices"] = [(str(device), memory_bar(device)) for device in with_reserved(Device.objects.all())]
    context["events"] = Event.objects.all()[:MAX_EVENTS]
    return context


def _waiting(beats: Iterable[ReplicaBeat]) -> int:
    """In engines and in queues: those that are held for a model which is not up as well."""
    queued = waiting_jobs(list(Deployment.objects.filter(replicas__gt=0)))
    return sum(beat.waiting for beat in beats) + sum(queued.values())


def _applied() -> SafeString:
    """``4/4``, and who runs another revision."""
    found = applied()
    return render_to_string("admin/parts/applied.html", {"applied": found, "behind": sorted(found.behind)})


def _models() -> list[dict[str, Any]]:
    rows = list(with_versions(Model.objects.all()[:MAX_MODELS]))
    found = statuses(version for row in rows for version in row.versions.all())
    return [_model(row, found) for row in rows]


def _model(model: Model, found: dict[int, Any]) -> dict[str, Any]:
    versions = list(model.versions.all())
    meant = next((alias.version for alias in model.aliases.all() if alias.is_default), None)
    if meant is None and versions:
        meant = versions[0]
    status = found[meant.pk] if meant else furthest([])
    facts = meant.facts if meant else {}
    return {
        "name": model.name,
        "url": reverse("admin:registry_model_change", args=[model.pk]),
        "version": meant.version if meant else "–",
        "version_url": reverse("admin:registry_modelversion_change", args=[meant.pk]) if meant else None,
        "status": status.status,
        "label": STATE_LABELS.get(status.status, "default"),
        "why": status.reason or status.stage or "",
        "parameters": in_short(facts.get("parameters")),
        "weights": in_bytes(facts.get("weight_bytes")),
        "context": in_short(facts.get("context_length")),
    }
