"""`manage.py router_train [FILE]`"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import InvalidRequest
from routing.actions.scorers import keep_scorer
from routing.core.scorer import TRAITS, traits_of
from routing.core.training import Rated, train
from routing.feedback_rows import rated_of_feedback

MAX_ROWS = 1_000_000


class Command(DataCommand):
    help = (
        "Learn the scorer of balanced routes and auto from rated answers, and keep it with its evaluation. Without "
        "a file: from the ratings that came while their decisions were kept. "
        "Exit codes: 0 done, 5 a wrong or too little data."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "file",
            nargs="?",
            type=Path,
            help='JSON lines {"model": "name@version", "prompt": "…", "rating": 0 to 1}; - for standard input',
        )
        parser.add_argument("--use", action="store_true", help="put it to work at once")
        add_reason(parser)

    def run(self, *, file: Path | None, use: bool, reason: str, **_: Any) -> dict[str, Any]:
        rows = rated_of_feedback() if file is None else list(_rows(_text(file)))
        row = keep_scorer(train(rows), actor=actor(), reason=reason, use=use)
        return {"number": row.number, "in_use": row.in_use, **row.evaluation, "weights": row.weights}


def _text(file: Path) -> Iterable[str]:
    try:
        return sys.stdin.readlines() if str(file) == "-" else file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}", param="file") from error


def _rows(lines: Iterable[str]) -> Iterator[Rated]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number > MAX_ROWS:
            raise InvalidRequest(f"more than {MAX_ROWS} lines", param="file")
        try:
            found = json.loads(line)
            model, rating = found["model"], found["rating"]
            traits = traits_of(found["prompt"]) if "prompt" in found else tuple(map(float, found["traits"]))
            good = isinstance(model, str) and isinstance(rating, int | float) and 0 <= rating <= 1
            if not good or len(traits) != len(TRAITS):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidRequest(
                f'line {number}: not {{"model": "name@version", "prompt": "…", "rating": 0 to 1}}',
                param="file",
            ) from None
        yield Rated(id=str(number), served_id=model, traits=traits, rating=float(rating))
