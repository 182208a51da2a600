"""`manage.py usage_report --by day,model --since 7d`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from mmserve.errors import InvalidRequest
from routing import reports

MAX_ROWS = 10_000


class Command(DataCommand):
    help = "What was used and spent, in sums of whole hours (UTC). Exit codes: 0 done, 5 a wrong value."
    SUMS = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--by",
            default="model",
            help=f"what a row stands for: {', '.join(reports.DIMENSIONS)}, with commas",
        )
        parser.add_argument("--since", default="30d", help="a time (UTC), or 7d, 24h, 30m ago")
        parser.add_argument("--until", help="a time (UTC), or 7d, 24h, 30m ago; now, if left out")
        parser.add_argument(
            "--where",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"only this {', '.join(reports.NAMES)}; may be given again",
        )
        parser.add_argument("--limit", type=int, default=1000)

    def run(
        self, *, by: str, since: str, until: str | None, where: list[str], limit: int, **options: Any
    ) -> dict[str, Any] | list[dict[str, Any]]:
        if not 0 < limit <= MAX_ROWS:
            raise InvalidRequest(f"limit is {limit}, not from 1 to {MAX_ROWS}", param="limit")
        asked = reports.Asked(
            by=reports.dimensions(by),
            since=reports.moment(since, "since"),
            until=reports.moment(until, "until") if until else None,
            names=dict(_pair(one) for one in where),
        )
        page, more = reports.report(asked, limit=limit)
        if more:
            self.stderr.write(f"Only the first {limit} rows are shown: narrow it, or raise --limit.")
        if options["json"]:
            return {"by": asked.by, "since": asked.begins_at, "data": page, "total": reports.totals(asked)}
        names = [("key_name" if name == "key" else name) for name in asked.by]
        self.columns = (*names, *self.SUMS)
        return [*page, {names[0]: "total", **reports.totals(asked)}]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if name not in reports.NAMES or not equals:
        raise InvalidRequest(
            f"where: {text[:50]!r} is no NAME=VALUE of {', '.join(reports.NAMES)}", param="where"
        )
    return name, value
