"""`manage.py model_list`"""

from __future__ import annotations

from typing import Any

from mmserve.command import DataCommand
from mmserve.presentation import current_statuses, version_fields
from registry.models import ModelVersion


class Command(DataCommand):
    help = "List every version with its status. Exit codes: 0 done."
    columns = ("id", "status", "aliases", "capabilities", "context_length", "reason")

    def run(self, **_: Any) -> list[dict[str, Any]]:
        versions = list(ModelVersion.objects.select_related("model").prefetch_related("aliases"))
        found = current_statuses(versions)
        return [version_fields(version, found[version.pk]) for version in versions]
