"""`manage.py registry_export`"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, exit_code
from mmserve.errors import MmserveError
from registry.lookup import find_model
from registry.models import Model
from registry.portable import write_document
from registry.portable.document import as_builtins, portable


class Command(DataCommand):
    help = (
        "Write models, versions, prices, aliases and routes as one YAML document (--json: as JSON). No key is in it. "
        "Exit codes: 0 done, 1 the file cannot be written, 3 no such model."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="*", help="of models; all of them, and the routes, if left out")
        parser.add_argument("--output", type=Path, help="a file; standard output if left out")

    def handle(self, *args: Any, names: list[str], output: Path | None, **options: Any) -> None:
        try:
            chosen = Model.objects.filter(pk__in=[find_model(name).pk for name in names])
        except MmserveError as error:
            self.stderr.write(error.message)
            sys.exit(exit_code(error))
        rows = (chosen if names else Model.objects.all()).prefetch_related(
            "versions__files", "aliases__version"
        )
        document = portable(rows, whole=not names)
        text = write_document(document)
        if options["json"]:
            text = json.dumps(as_builtins(document), indent=2)
        if output is None:
            self.stdout.write(text)
            return
        # Whole or not at all: git must not see half of it.
        partial = output.with_name(output.name + ".partial")
        try:
            partial.write_text(text)
            partial.rename(output)
        except OSError as error:
            self.stderr.write(f"{output}: {error.strerror}")
            sys.exit(1)
