"""A registry of 10,000 versions for the listing: ``python -m tests.bench.many_rows MODELS VERSIONS``."""

from __future__ import annotations

import os
import sys

import django


def create(models: int, versions: int) -> None:
    """Ready versions with facts, and a default alias each; made in bulk, and one event for them all."""
    from registry.models import Alias, Model, ModelVersion, VersionState
    from registry.revision import bump

    facts = {"context_length": 131072, "parameters": 8_000_000_000, "weight_bytes": 16_000_000_000}
    made = Model.objects.bulk_create(
        Model(name=f"org-{n % 50}/model-{n}", description="A model among many.", tags=["eu", "tier=gold"])
        for n in range(models)
    )
    rows = ModelVersion.objects.bulk_create(
        (
            ModelVersion(
                model=model,
                version=str(number),
                source_uri="file:///nowhere",
                state=VersionState.READY,
                facts=facts,
                capabilities=["completion", "chat", "json"],
            )
            for model in made
            for number in range(1, versions + 1)
        ),
        batch_size=1000,
    )
    Alias.objects.bulk_create(
        Alias(model=row.model, name="production", version=row, is_default=True)
        for row in rows
        if row.version == str(versions)
    )
    bump("model.registered", "many", "benchmark")


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mmserve.settings")
    django.setup()
    create(int(sys.argv[1]), int(sys.argv[2]))
