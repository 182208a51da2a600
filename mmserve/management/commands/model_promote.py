"""`manage.py model_promote ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from registry.actions import promote
from registry.lookup import find_version


class Command(DataCommand):
    help = (
        "Move an alias to a version. Exit codes: 0 done, 3 no such model, "
        "4 refused: not ready, or somebody moved the alias first."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        parser.add_argument("--alias", help="the default alias, if left out")
        parser.add_argument(
            "--expected-revision", type=int, help="refuse if the alias is at another revision"
        )
        add_reason(parser)

    def run(
        self, *, id: str, alias: str | None, expected_revision: int | None, reason: str, **_: Any
    ) -> dict[str, Any]:
        version = find_version(id)
        row = promote(version, actor=actor(), alias=alias, expected_revision=expected_revision, reason=reason)
        return {
            "alias": str(row),
            "version": row.version.version,
            "revision": row.revision,
            "default": row.is_default,
        }
