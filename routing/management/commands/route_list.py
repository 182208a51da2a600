"""`manage.py route_list`"""

from __future__ import annotations

from typing import Any

from mmserve.command import DataCommand
from routing.models.routes import Route


class Command(DataCommand):
    help = "List the routes with their policies and candidates. Exit code: 0 done."
    columns = ("name", "enabled", "policy", "candidates", "revision", "description")

    def run(self, **_: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": route.name,
                "enabled": route.enabled,
                "policy": route.policy,
                "candidates": [line.target for line in route.candidates.all()],
                "revision": route.revision,
                "description": route.description,
            }
            for route in Route.objects.prefetch_related("candidates")
        ]
