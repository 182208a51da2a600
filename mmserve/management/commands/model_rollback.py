"""`manage.py model_rollback NAME[@ALIAS]`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from registry.actions import rollback
from registry.lookup import find_model


class Command(DataCommand):
    help = (
        "Move an alias back to the version that it meant before. "
        "Exit codes: 0 done, 3 no such model or alias, 4 refused, or somebody was first."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name (its default alias) or name@alias")
        parser.add_argument(
            "--expected-revision", type=int, help="refuse if the alias is at another revision"
        )
        add_reason(parser)

    def run(self, *, id: str, reason: str, expected_revision: int | None, **_: Any) -> dict[str, Any]:
        name, _, alias = id.partition("@")
        row = rollback(
            find_model(name),
            alias=alias or None,
            actor=actor(),
            expected_revision=expected_revision,
            reason=reason,
        )
        return {"alias": str(row), "version": row.version.version, "revision": row.revision}
