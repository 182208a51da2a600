"""`manage.py registry_apply FILE`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import InvalidRequest
from registry.portable import Change, apply, plan, read_document


class Command(DataCommand):
    help = (
        "Make the registry what a YAML document says, all or nothing. What is not in it stays (--prune: goes). "
        "Exit codes: 0 done, 4 it cannot be, 5 the document is wrong."
    )
    columns = ("what", "subject", "fields", "waits")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="as registry_export wrote it; - for standard input")
        parser.add_argument("--dry-run", action="store_true", help="only show what would change")
        parser.add_argument(
            "--prune", action="store_true", help="delete models, versions and routes that it does not name"
        )
        parser.add_argument("--no-fetch", action="store_true", help="do not bring the files of new versions")
        add_reason(parser)

    def run(
        self, *, file: Path, dry_run: bool, prune: bool, no_fetch: bool, reason: str, **_: Any
    ) -> list[dict[str, Any]]:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{file} cannot be read: {error}", param="file") from error
        document = read_document(text)
        if dry_run:
            changes = plan(document, prune=prune, fetch=not no_fetch)
        else:
            changes = apply(document, actor=actor(), reason=reason, prune=prune, fetch=not no_fetch)
        if not changes:
            self.stderr.write("The registry is as the document says.")
        return [_row(change) for change in changes]


def _row(change: Change) -> dict[str, Any]:
    return {
        "what": change.what,
        "subject": change.subject,
        "fields": change.fields,
        "waits": change.waits or None,
    }
