"""`manage.py experiment_report NAME`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from routing.actions.experiments import find_experiment
from routing.experiments.report import as_json, report_of


class Command(DataCommand):
    help = (
        "An experiment as its numbers stand; may be looked at as often as one likes. "
        "Exit codes: 0 done, 3 no such experiment."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")

    def run(self, *, name: str, **options: Any) -> dict[str, Any]:
        found = as_json(report_of(find_experiment(name)))
        if options["json"]:
            return found
        shown: dict[str, Any] = {
            field: found[field]
            for field in ("experiment", "state", "exposure", "verdict", "words", "days_left")
        }
        for arm in found["arms"]:
            role = "control" if arm["control"] else "arm"
            shown[f"{role} {arm['name']}"] = (
                f"{arm['version']}: {arm['requests']} requests, {arm['errors']} errors"
            )
        for arm, comparisons in found["comparisons"].items():
            for one in comparisons:
                if one["relative"] is not None:
                    interval = f"{one['relative_low']:+.1%} to {one['relative_high']:+.1%}"
                    shown[f"{arm} {one['metric']}"] = f"{one['relative']:+.1%} ({interval})"
        for one in found["guardrails"]:
            shown[f"guardrail {one['metric']} of {one['arm']}"] = (
                f"{one['state']}, limit {one['limit']:.0%} worse"
            )
        shown["mismatch p"] = found["mismatch"]["p"]
        return shown
