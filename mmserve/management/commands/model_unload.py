"""`manage.py model_unload ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from inference.actions import unload
from mmserve.command import DataCommand, actor, add_reason
from mmserve.presentation import version_fields
from registry.lookup import find_version


class Command(DataCommand):
    help = (
        "Have a model served no longer; what runs finishes first. "
        "Exit codes: 0 asked for, 3 no such model, 4 never loaded."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name, name@version or name@alias")
        add_reason(parser)

    def run(self, *, id: str, reason: str, **_: Any) -> dict[str, Any]:
        version = find_version(id)
        unload(version, actor=actor(), reason=reason)
        return version_fields(version)
