"""`manage.py experiment_create NAME TARGET --control VERSION --arm NAME=VERSION`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import InvalidRequest
from routing.actions.experiments import create_experiment
from routing.core.assignment import UNITS


class Command(DataCommand):
    help = "Draft an experiment. Exit codes: 0 done, 4 the name is taken, 5 a wrong value."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("target", help="the model id or route that clients name")
        parser.add_argument("--control", required=True, help="the version that the others are compared with")
        parser.add_argument(
            "--arm", action="append", required=True, help="name=version or name=version:weight"
        )
        parser.add_argument("--control-weight", type=int, default=50)
        parser.add_argument("--unit", choices=UNITS, default="user")
        parser.add_argument("--metric", default="e2e", help="the primary one")
        parser.add_argument("--smallest-effect", type=float, default=0.05)
        parser.add_argument(
            "--guardrail", action="append", default=[], help="metric=limit, e.g. error_rate=0.2"
        )
        add_reason(parser)

    def run(self, *, name: str, target: str, reason: str, **options: Any) -> dict[str, Any]:
        control = {
            "name": "control",
            "version": options["control"],
            "weight": options["control_weight"],
            "is_control": True,
        }
        row = create_experiment(
            name,
            [control, *map(_arm, options["arm"])],
            actor=actor(),
            reason=reason,
            target=target,
            unit=options["unit"],
            primary_metric=options["metric"],
            smallest_effect=options["smallest_effect"],
            guardrails=[_guardrail(text) for text in options["guardrail"]],
        )
        arms = [f"{arm.name} {arm.served_id} {arm.weight}" for arm in row.arms.all()]
        return {"name": row.name, "state": row.state, "target": row.target, "arms": arms}


def _arm(text: str) -> dict[str, Any]:
    name, _, version = text.partition("=")
    version, _, weight = version.partition(":")
    if not version or (weight and not weight.isdigit()):
        raise InvalidRequest(f"{text!r} is not name=version or name=version:weight", param="arm")
    return {"name": name, "version": version, "weight": int(weight or 50)}


def _guardrail(text: str) -> dict[str, Any]:
    metric, _, limit = text.partition("=")
    try:
        return {"metric": metric, "limit": float(limit)}
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not metric=limit", param="guardrail") from error
