"""What commands about one version share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

from django.core.management.base import CommandParser

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import InvalidRequest
from mmserve.presentation import version_fields
from registry.actions.versions import PRICES
from registry.lookup import find_version
from registry.models import ModelVersion


class VersionCommand(DataCommand):
    """``verb`` is one of registry.actions."""

    verb: ClassVar[Callable[..., ModelVersion]]

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name@version")
        add_reason(parser)

    def run(self, *, id: str, reason: str, **_: Any) -> dict[str, Any]:
        version = type(self).verb(find_version(id), actor=actor(), reason=reason)
        return version_fields(version)


def add_version_fields(parser: CommandParser) -> None:
    """Options of commands that make a version: tags, prices, engine options."""
    parser.add_argument("--tag", action="append", help="once for each; key=value among them")
    for name in PRICES:
        words = "a device-hour" if name == "price_device_hour" else "a million tokens"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="PRICE", help=f"of {words}, e.g. 0.15")
    parser.add_argument("--engine-options", metavar="JSON", help='e.g. {"max_streams": 16}')


def version_fields_of(options: dict[str, Any]) -> dict[str, Any]:
    """What of them was given, as the actions take it."""
    found = {name: options[name] for name in PRICES if options.get(name) is not None}
    if options.get("tag") is not None:
        found["tags"] = options["tag"]
    if options.get("engine_options") is not None:
        try:
            found["engine_options"] = json.loads(options["engine_options"])
        except ValueError as error:
            raise InvalidRequest(f"--engine-options is not JSON: {error}", param="engine_options") from error
    return found
