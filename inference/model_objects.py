"""Models as OpenAI's ``/v1/models`` shows them, with what mmserve adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Prefetch, QuerySet

from inference.status import Status, furthest, statuses
from inference.why import why_not_running
from registry.models import Alias, Model, ModelVersion


def with_versions(models: QuerySet[Model]) -> QuerySet[Model]:
    """Models with all that model_objects reads, in a fixed number of queries."""
    return models.prefetch_related(
        Prefetch("versions", ModelVersion.objects.select_related("model")),
        Prefetch("aliases", Alias.objects.select_related("model", "version")),
    )


def whole_object(model: Model, *, why: bool) -> dict[str, Any]:
    """One model's object, and if asked for, why what it means is not running."""
    row = with_versions(Model.objects.filter(pk=model.pk)).get()
    meant = _meant(row)
    return {
        **model_object(row, statuses(row.versions.all())),
        **({"why": why_not_running(meant) if meant else []} if why else {}),
    }


def version_object(version: ModelVersion, asked_id: str, *, why: bool) -> dict[str, Any]:
    """The object of one version, under the id that was asked for; if asked for, why it is not running."""
    return {
        "id": asked_id,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": version.model.owner,
        "version": version.version,
        **_of_version(version, statuses([version])[version.pk]),
        **({"why": why_not_running(version)} if why else {}),
    }


def model_object(model: Model, found: Mapping[int, Status]) -> dict[str, Any]:
    """The object of a model that with_versions read, and the statuses of its versions."""
    versions, aliases = list(model.versions.all()), list(model.aliases.all())
    meant = _meant(model)
    status = found[meant.pk] if meant else furthest(found[version.pk] for version in versions)
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": model.owner,
        "display_name": model.display_name or model.name,
        "description": model.description,
        "version": meant.version if meant else None,
        **_of_version(meant, status),
        "versions": [{"id": row.served_id, "status": found[row.pk].status} for row in versions],
        "aliases": {alias.name: alias.version.version for alias in aliases},
    }


def _meant(model: Model) -> ModelVersion | None:
    """The version that its bare name means: its default alias's, or its only one."""
    versions = list(model.versions.all())
    default = next((alias.version_id for alias in model.aliases.all() if alias.is_default), None)
    meant = next((version for version in versions if version.pk == default), None)
    return versions[0] if meant is None and len(versions) == 1 else meant


def _of_version(version: ModelVersion | None, status: Status) -> dict[str, Any]:
    return {
        "status": status.status,
        "reason": status.reason,
        "stage": status.stage,
        "eta_s": status.eta_s,
        "done_bytes": status.done_bytes,
        "total_bytes": status.total_bytes,
        "form": status.form,
        "capabilities": version.capabilities if version else [],
        "context_length": version.facts.get("context_length") if version else None,
    }
