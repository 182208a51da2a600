"""Rows as the commands print them."""

from __future__ import annotations

from typing import Any

from inference.status import Status, statuses
from registry.models import ModelVersion


def version_fields(version: ModelVersion, status: Status | None = None) -> dict[str, Any]:
    """What there is to say of one version in a table."""
    found = status or statuses([version])[version.pk]
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
