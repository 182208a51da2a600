"""Commands that do one thing to one version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.presentation import version_fields
from registry.lookup import find_version
from registry.models import ModelVersion


class VersionCommand(DataCommand):
    """``verb`` is one of registry.actions."""

    verb: ClassVar[Callable[..., ModelVersion]]

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        add_reason(parser)

    def run(self, *, id: str, reason: str, **_: Any) -> dict[str, Any]:
        version = type(self).verb(find_version(id), actor=actor(), reason=reason)
        return version_fields(version)
