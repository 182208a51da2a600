"""`manage.py model_cancel ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.presentation import version_fields
from registry.actions import cancel_import
from registry.lookup import find_version


class Command(DataCommand):
    help = "Stop bringing a version's files. Exit codes: 0 done, 3 no such model, 4 refused."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        add_reason(parser)

    def run(self, *, id: str, reason: str, **_: Any) -> dict[str, Any]:
        version = cancel_import(find_version(id), actor=actor(), reason=reason)
        return version_fields(version)
