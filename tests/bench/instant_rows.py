"""The rows of a platform whose one model is served by the instant engine; prints its credentials as JSON.

``python -m tests.bench.instant_rows [whole] [QUEUE_BOUND]`` with the platform's environment, after ``manage.py
migrate``. No node runs in that platform, so the wish for a replica is written down without asking whether it fits.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import django

MODEL = "instant"
ACTOR = "benchmark"
CONTEXT_TOKENS = 8192


def create(whole: bool, queue_bound: int | None = None) -> dict[str, str]:
    """Model, ready version, default alias, deployment; returns credentials and the deployment's name."""
    from django.conf import settings

    from inference.actions import ensure_deployment
    from inference.models import Deployment
    from mmserve.first_start import ensure_credentials
    from mmserve.models import AccessKey
    from registry.actions import promote, register_model, register_version
    from registry.actions.versions import finish_import, transition
    from registry.models import VersionState

    model = register_model(MODEL, actor=ACTOR)
    source = (Path(settings.DATA_DIR) / MODEL).as_uri()
    version = register_version(model, "1", source, actor=ACTOR, capabilities=["chat", "completion"])
    transition(version, VersionState.FETCHING)
    version.facts = {"context_length": CONTEXT_TOKENS}
    finish_import(version, actor=ACTOR)
    promote(version, actor=ACTOR)
    deployment = ensure_deployment(version, actor=ACTOR)
    bounds = {} if queue_bound is None else {"queue_bound": queue_bound}
    Deployment.objects.filter(pk=deployment.pk).update(replicas=1, **bounds)
    credentials = ensure_credentials()
    # More clients than one are played with one key.
    AccessKey.objects.update(max_concurrency=10_000)
    asks_for, note = add_whole() if whole else (MODEL, "")
    return {**credentials, "deployment": deployment.name, "asks_for": asks_for, "note": note}


def add_whole() -> tuple[str, str]:
    """Prices, a team and budgets; what a client is to name, and what is on."""
    from decimal import Decimal

    from mmserve.key_actions import change_key
    from mmserve.models import AccessKey
    from registry.actions import update_version
    from registry.models import ModelVersion
    from routing import actions

    version = ModelVersion.objects.get()
    update_version(version, actor=ACTOR, price_input=Decimal("0.15"), price_output=Decimal("0.6"))
    team = actions.create_team("bench", actor=ACTOR)
    key = AccessKey.objects.get()
    change_key(key, {"team": team}, actor=ACTOR)
    limit = {"limit_usd": Decimal(1000), "actor": ACTOR}
    actions.create_budget("key", str(key.pk), period="day", **limit)
    actions.create_budget("team", "bench", period="month", **limit)
    return MODEL, "prices, two budgets, decisions kept, roll-up"


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mmserve.settings")
    django.setup()
    bounds = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    print(json.dumps(create("whole" in sys.argv[1:], *bounds)))
