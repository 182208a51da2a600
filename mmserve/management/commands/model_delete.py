"""`manage.py model_delete ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from inference.deletion import drain_and_delete
from mmserve.command import DataCommand, actor, add_reason
from registry.actions import delete_alias, delete_model, delete_version
from registry.lookup import find
from registry.models import Alias, Model


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
        found = find(id)
        deleted = True
        if isinstance(found, Alias):
            delete_alias(found, actor=actor(), reason=reason)
        elif drain:
            deleted = drain_and_delete(found, actor=actor(), reason=reason)
        elif isinstance(found, Model):
            delete_model(found, actor=actor(), reason=reason)
        else:
            delete_version(found, actor=actor(), reason=reason)
        return {"id": id, "deleted": deleted}
