"""`manage.py model_show ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from mmserve.presentation import version_fields
from registry.actions.versions import PRICES
from registry.lookup import find_version


class Command(DataCommand):
    help = "Show one version with its facts and files. Exit codes: 0 done, 3 no such model."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name, name@version or name@alias")

    def run(self, *, id: str, **_: Any) -> dict[str, Any]:
        version = find_version(id)
        prices = {name: getattr(version, name) for name in PRICES}
        told = {name: getattr(version, name) for name in ("description", "tags", "engine_options")}
        files = list(version.files.values("path", "size_bytes", "sha256"))
        return {**version_fields(version), **told, **version.facts, **prices, "files": files}
