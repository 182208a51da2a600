"""The rows of a platform whose one model is served by the instant engine; prints its credentials as JSON.

``python -m tests.bench.instant_rows [whole] [QUEUE_BOUND]`` with the platform's environment, after ``manage.py
migrate``. No node runs in that platform, so the wish for a replica is written down without asking whether it fits.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import django

if TYPE_CHECKING:
    from routing.models import Experiment

MODEL = "instant"
ROUTE = "smart"
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
    asks_for, note = add_whole(source) if whole else (MODEL, "")
    return {**credentials, "deployment": deployment.name, "asks_for": asks_for, "note": note}


def add_whole(source: str) -> tuple[str, str]:
    """Prices, a team, budgets, a route and an experiment on it; what a client is to name, and what is on.

    The experiment's unit is the key, so that every request is assigned, and all of them to the control: the other
    arm would need an engine of its own, which the platform without all this does not have.
    """
    from decimal import Decimal

    from mmserve.key_actions import change_key
    from mmserve.models import AccessKey
    from registry.actions import register_version, update_version
    from registry.actions.versions import finish_import, transition
    from registry.models import Model, ModelVersion, VersionState
    from routing import actions
    from routing.actions.experiments import create_experiment, start_experiment
    from routing.actions.routes import create_route
    from routing.models import Experiment

    version = ModelVersion.objects.get()
    update_version(version, actor=ACTOR, price_input=Decimal("0.15"), price_output=Decimal("0.6"))
    other = register_version(Model.objects.get(), "2", source, actor=ACTOR, capabilities=version.capabilities)
    transition(other, VersionState.FETCHING)
    other.facts = version.facts
    finish_import(other, actor=ACTOR)
    team = actions.create_team("bench", actor=ACTOR)
    key = AccessKey.objects.get()
    change_key(key, {"team": team}, actor=ACTOR)
    limit = {"limit_usd": Decimal(1000), "actor": ACTOR}
    actions.create_budget("key", str(key.pk), period="day", **limit)
    actions.create_budget("team", "bench", period="month", **limit)
    actions.create_budget("route", ROUTE, period="month", **limit)
    lines = [{"target": version.served_id}, {"target": other.served_id}]
    create_route(ROUTE, actor=ACTOR, policy="balanced", candidates=lines)
    arms = [
        {"name": "control", "version": version, "weight": 50, "is_control": True},
        {"name": "new", "version": other, "weight": 50},
    ]
    row = create_experiment("bench", arms, actor=ACTOR, target=ROUTE, unit="key", ramp=[])
    start_experiment(row, actor=ACTOR)
    Experiment.objects.update(salt=_salt_of_the_control(row, str(key.pk)))
    return ROUTE, "a route, an experiment, prices, three budgets, decisions kept, roll-up"


def _salt_of_the_control(row: Experiment, key: str) -> int:
    from routing.core.assignment import Experiments, Subject
    from routing.experiments.table import entry_of

    for salt in range(1000):
        found = Experiments([replace(entry_of(row), salt=salt)]).assign(ROUTE, Subject(request="", key=key))
        if found is not None and found.arm_name == "control":
            return salt
    raise AssertionError("no salt gives this key the control")


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mmserve.settings")
    django.setup()
    bounds = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    print(json.dumps(create("whole" in sys.argv[1:], *bounds)))
