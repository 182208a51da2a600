"""`manage.py model_delete ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from inference.deletion import delete
from mmserve.command import DataCommand, actor, add_reason
from registry.lookup import find


class Command(DataCommand):
    help = (
        "Delete a model with its versions and files, a version, or an alias; refused while it is served. "
        "Exit codes: 0 done (--drain: or will be, once its engines have finished), 3 no such model, 4 refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name, name@version or name@alias")
        parser.add_argument("--drain", action="store_true", help="unload it first")
        add_reason(parser)

    def run(self, *, id: str, drain: bool, reason: str, **_: Any) -> dict[str, Any]:
        deleted = delete(find(id), actor=actor(), reason=reason, drain=drain)
        return {"id": id, "deleted": deleted}
