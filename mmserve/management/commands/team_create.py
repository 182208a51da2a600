"""`manage.py team_create NAME`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from routing.actions import create_team


class Command(DataCommand):
    help = "Create a team: keys that are reported and limited together. Exit codes: 0 done, 4 taken, 5 a wrong value."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--description", default="")
        add_reason(parser)

    def run(self, *, name: str, description: str, reason: str, **options: Any) -> dict[str, Any]:
        team = create_team(name, description=description, actor=actor(), reason=reason)
        return {"id": team.pk, "name": team.name}
