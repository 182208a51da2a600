"""`manage.py model_register NAME VERSION SOURCE`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.db import transaction

from mmserve.command import DataCommand, actor, add_reason
from mmserve.errors import Conflict
from mmserve.presentation import version_fields
from mmserve.version_command import add_version_fields, version_fields_of
from registry.actions import register_model, register_version
from registry.models import Model

MODEL_OPTIONS = {
    "display_name": "what people call it",
    "description": "Markdown",
    "owner": "a person",
    "team": "theirs",
    "licence": "e.g. apache-2.0",
}


class Command(DataCommand):
    help = (
        "Register a version, and its model if there is none. Exit codes: 0 done, 4 exists, 5 a wrong value."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="the model's name, e.g. org/model")
        parser.add_argument("version", help="e.g. 1")
        parser.add_argument("source", help="file:///folder, s3://…, hf://…, https://… or pypi://…")
        for name, words in MODEL_OPTIONS.items():
            parser.add_argument(f"--{name.replace('_', '-')}", help=f"of a new model: {words}")
        add_version_fields(parser)
        add_reason(parser)

    @transaction.atomic
    def run(self, *, name: str, version: str, source: str, reason: str, **options: Any) -> dict[str, Any]:
        described = {field: options[field] for field in MODEL_OPTIONS if options[field] is not None}
        model = Model.objects.filter(name=name).first()
        if model is None:
            model = register_model(name, actor=actor(), reason=reason, **described)
        elif described:
            raise Conflict(f"There is a model {name} already; {', '.join(described)} would change it.")
        fields = version_fields_of(options)
        return version_fields(
            register_version(model, version, source, actor=actor(), reason=reason, **fields)
        )
