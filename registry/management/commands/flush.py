"""Django's `flush`, which has to lift the append-only triggers for as long as it empties the tables."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import flush
from django.db import connections

from registry import append_only


class Command(flush.Command):
    """Remove every row of every table."""

    def handle(self, **options: Any) -> None:
        connection = connections[options["database"]]
        append_only.remove(connection)
        try:
            super().handle(**options)
        finally:
            append_only.install(connection)
