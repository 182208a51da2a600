"""`manage.py route_show NAME`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from routing.actions.routes import find_route, portable


class Command(DataCommand):
    help = "Show one route: policy, constraints, candidates. Exit codes: 0 done, 3 no such route."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")

    def run(self, *, name: str, **_: Any) -> dict[str, Any]:
        route = find_route(name)
        return {"name": route.name, "revision": route.revision, **portable(route)}
