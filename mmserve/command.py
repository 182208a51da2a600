"""The base of mmserve's commands: data on stdout, progress on stderr, errors in words, documented exit codes.

0  done
1  something went wrong inside mmserve, or a service that it needs is away
2  the command line is wrong (argparse)
3  there is no such thing
4  refused: it is in the wrong state, somebody was first, or it would not fit
5  a value is wrong
"""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import OperationalError

from mmserve.errors import Conflict, InvalidRequest, MmserveError, NotFound

EXIT_CODES: tuple[tuple[type[MmserveError], int], ...] = ((NotFound, 3), (Conflict, 4), (InvalidRequest, 5))


def exit_code(error: MmserveError) -> int:
    """The documented exit code of an error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def actor() -> str:
    """Who runs the command, for the event."""
    return f"command:{getpass.getuser()}"


class DataCommand(BaseCommand):
    """A command whose :meth:`run` returns data; rendered as a table, or as JSON with ``--json``."""

    columns: tuple[str, ...] = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
        return parser

    def run(self, **options: Any) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        """Do it, and return what there is to print."""
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            data = self.run(**options)
        except MmserveError as error:
            self.stderr.write(error.message)
            sys.exit(exit_code(error))
        except OperationalError as error:
            self.stderr.write(
                f"The database (DATABASE_URL, else in MMSERVE_DATA_DIR) cannot be used: {' '.join(str(error).split())}"
            )
            sys.exit(1)
        self.render(data, as_json=options["json"])

    def render(self, data: Mapping[str, Any] | list[Mapping[str, Any]], *, as_json: bool) -> None:
        """Print data."""
        if as_json:
            self.stdout.write(json.dumps(data, indent=2, default=str))
        elif isinstance(data, Mapping):
            self._print_fields(data)
        else:
            self._print_rows(data, self.columns)

    def _print_fields(self, data: Mapping[str, Any]) -> None:
        tables = {name: value for name, value in data.items() if _is_table(value)}
        width = max((len(name) for name in data if name not in tables), default=0)
        for name, value in data.items():
            if name not in tables:
                self.stdout.write(f"{name:<{width}}  {_cell(value)}")
        for name, rows in tables.items():
            self.stdout.write(f"\n{name}")
            self._print_rows(rows, tuple(rows[0]))

    def _print_rows(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        table = [[name.upper() for name in columns]]
        table += [[_cell(row.get(name)) for name in columns] for row in rows]
        widths = [max(len(line[place]) for line in table) for place in range(len(columns))]
        for line in table:
            self.stdout.write(
                "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(part) for part in value) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_cell(part)}" for name, part in value.items()) or "-"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return str(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def add_reason(parser: CommandParser) -> None:
    """``--reason``: why, for the event."""
    parser.add_argument("--reason", default="", help="why, for the audit trail")
