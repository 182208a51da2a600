"""Exit codes and output of commands; and that every command has a test."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands
from django.db import OperationalError

from mmserve.command import DataCommand, exit_code
from mmserve.errors import (
    Conflict,
    InsufficientMemory,
    InvalidRequest,
    MmserveError,
    ModelNotFound,
    Unavailable,
)

OURS = {"registry", "routing", "inference", "mmserve"}
# `up` starts these, and the tests of the promises kill and drain them.
STARTED_BY_UP = {"node", "controller"}
TESTS = Path(__file__).parents[2]


class Listing(DataCommand):
    columns = ("id", "aliases")

    def __init__(self, data: Any) -> None:
        super().__init__(stdout=io.StringIO(), stderr=io.StringIO())
        self.data = data

    def run(self, **options: Any) -> Any:
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


def output(data: Any, *, as_json: bool = False) -> str:
    command = Listing(data)
    command.handle(json=as_json)
    return command.stdout._out.getvalue()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MmserveError("x"), 1),
        (Unavailable("x"), 1),
        (ModelNotFound("x"), 3),
        (Conflict("x"), 4),
        (InsufficientMemory("x"), 4),
        (InvalidRequest("x"), 5),
    ],
)
def test_an_error_has_its_documented_exit_code_and_its_words_on_stderr(
    error: MmserveError, code: int
) -> None:
    command = Listing(error)

    with pytest.raises(SystemExit) as ended:
        command.handle(json=False)

    assert ended.value.code == code == exit_code(error)
    assert command.stderr._out.getvalue() == "x\n"
    assert command.stdout._out.getvalue() == ""


def test_a_database_that_is_away_is_told_in_one_line() -> None:
    command = Listing(OperationalError("unable to open\ndatabase file"))

    with pytest.raises(SystemExit) as ended:
        command.handle(json=False)

    assert ended.value.code == 1
    assert command.stderr._out.getvalue() == (
        "The database (DATABASE_URL, else in MMSERVE_DATA_DIR) cannot be used: unable to open database file\n"
    )


def test_rows_are_a_table_with_aligned_columns() -> None:
    rows = [{"id": "a@1", "aliases": ["production", "beta"]}, {"id": "longer@1", "aliases": []}]

    assert output(rows).splitlines() == ["ID        ALIASES", "a@1       production, beta", "longer@1  -"]


def test_one_thing_is_printed_field_by_field() -> None:
    assert output({"id": "a@1", "reason": None}) == "id      a@1\nreason  -\n"


def test_rows_within_one_thing_are_tables_below_it() -> None:
    moment = datetime(2026, 11, 28, 14, 3, 9, 5, tzinfo=UTC)
    events = [{"at": moment, "data": {"from": "1", "to": "2"}}, {"at": None, "data": {}}]

    assert output({"events": events, "model": "a", "aliases": {"production": "2"}}).splitlines() == [
        "model    a",
        "aliases  production: 2",
        "",
        "events",
        "AT                         DATA",
        "2026-11-28 14:03:09+00:00  from: 1, to: 2",
        "-                          -",
    ]


def test_json_is_json() -> None:
    assert json.loads(output({"id": "a@1", "aliases": []}, as_json=True)) == {"id": "a@1", "aliases": []}


def test_every_command_has_a_test() -> None:
    commands = {name for name, app in get_commands().items() if app in OURS}
    text = "\n".join(path.read_text() for path in TESTS.rglob("*.py") if path != Path(__file__))

    untested = {name for name in commands - STARTED_BY_UP if not re.search(rf'["\']{name}["\']', text)}

    assert commands
    assert untested == set()
