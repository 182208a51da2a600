"""`manage.py model_restore ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.presentation import version_fields
from registry.actions import restore_version
from registry.lookup import find_version


class Command(DataCommand):
    help = "Bring an archived version back. Exit codes: 0 done, 3 no such model, 4 refused."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        add_reason(parser)

    def run(self, *, id: str, reason: str, **_: Any) -> dict[str, Any]:
        version = restore_version(find_version(id), actor=actor(), reason=reason)
        return version_fields(version)
