"""Rows as the commands print them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inference.models import Node
from inference.silence import all_silent, heard
from inference.status import Status, statuses
from registry.models import ModelVersion


def current_statuses(versions: Iterable[ModelVersion]) -> dict[int, Status]:
    """By primary key, also where everything was stopped, and nobody is left to write down that nothing is served."""
    silence = all_silent(Node.objects.all())
    return {pk: heard(status, silence) for pk, status in statuses(versions).items()}


def version_fields(version: ModelVersion, status: Status | None = None) -> dict[str, Any]:
    """What there is to say of one version in a table."""
    found = status or current_statuses([version])[version.pk]
    return {
        "id": version.served_id,
        "state": version.state,
        "status": found.status,
        "reason": found.reason or version.state_reason or None,
        "stage": found.stage,
        "eta_s": found.eta_s,
        "aliases": [alias.name for alias in version.aliases.all()],
        "capabilities": version.capabilities,
        "context_length": version.facts.get("context_length"),
        "source": version.source_uri,
    }
