"""`manage.py model_duplicate ID VERSION`"""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import InvalidRequest
from mmserve.presentation import version_fields
from registry.actions import duplicate_version
from registry.lookup import find_version


class Command(DataCommand):
    help = (
        "Make a new version of the same files, with other options. "
        "Exit codes: 0 done, 3 no such model, 4 the name is taken, 5 a wrong value."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        parser.add_argument("label", help="the new version's name")
        parser.add_argument("--engine-options", help='JSON, e.g. {"max_streams": 16}')
        add_reason(parser)

    def run(
        self, *, id: str, label: str, engine_options: str | None, reason: str, **_: Any
    ) -> dict[str, Any]:
        changes = {}
        if engine_options is not None:
            try:
                changes["engine_options"] = json.loads(engine_options)
            except ValueError as error:
                raise InvalidRequest(
                    f"--engine-options is not JSON: {error}", param="engine_options"
                ) from error
        version = duplicate_version(find_version(id), label, actor=actor(), reason=reason, **changes)
        return version_fields(version)
