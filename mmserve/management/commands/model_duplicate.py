"""`manage.py model_duplicate ID VERSION`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.presentation import version_fields
from mmserve.version_command import add_version_fields, version_fields_of
from registry.actions import duplicate_version
from registry.lookup import find_version


class Command(DataCommand):
    help = (
        "Make a new version of the same files, with other options or prices. "
        "Exit codes: 0 done, 3 no such model, 4 the name is taken, 5 a wrong value."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        parser.add_argument("label", help="the new version's name")
        add_version_fields(parser)
        add_reason(parser)

    def run(self, *, id: str, label: str, reason: str, **options: Any) -> dict[str, Any]:
        changes = version_fields_of(options)
        version = duplicate_version(find_version(id), label, actor=actor(), reason=reason, **changes)
        return version_fields(version)
