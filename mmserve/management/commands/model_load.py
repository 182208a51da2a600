"""`manage.py model_load ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from inference.actions import load
from mmserve.command import DataCommand, actor, add_reason
from mmserve.presentation import version_fields
from registry.lookup import find_version


class Command(DataCommand):
    help = (
        "Have a model served. "
        "Exit codes: 0 asked for, 3 no such model, 4 refused: not ready, or it would not fit."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name, name@version or name@alias")
        parser.add_argument("--replicas", type=int, default=1)
        add_reason(parser)

    def run(self, *, id: str, replicas: int, reason: str, **_: Any) -> dict[str, Any]:
        version = find_version(id)
        load(version, actor=actor(), reason=reason, replicas=replicas)
        return version_fields(version)
