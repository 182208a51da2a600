"""`manage.py doctor`"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from mmserve.doctor import examine


class Command(DataCommand):
    help = "Look whether this machine can serve. Exit codes: 0 it can, 1 something is wrong."
    # It is the command that says what is wrong with the settings.
    requires_system_checks: list[str] = []
    columns = ("what", "good", "found")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--no-engine", action="store_true", help="do not try to import vLLM")

    def run(self, *, no_engine: bool, **_: Any) -> list[dict[str, Any]]:
        return [asdict(finding) for finding in examine(engine=not no_engine)]

    def handle(self, *args: Any, **options: Any) -> None:
        findings = self.run(**options)
        self.render(findings, as_json=options["json"])
        if not all(finding["good"] for finding in findings):
            sys.exit(1)
