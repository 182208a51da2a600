"""Routes, and ``auto``, as ``/v1/models`` shows them: beside the models, since clients name both alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inference.model_objects import with_versions
from inference.status import Status, furthest, statuses
from registry.models import Model, ModelVersion
from routing.core.route import AUTO, Policy
from routing.models.routes import Route

OWNER = "mmserve"
AUTO_WORDS = "Whichever of the models that the key may use suits the request best."


def meanings(models: Iterable[Model]) -> dict[str, ModelVersion]:
    """What each id stands for now: name, name@version, name@alias; the models as with_versions reads them."""
    found: dict[str, ModelVersion] = {}
    for model in models:
        versions = {version.pk: version for version in model.versions.all()}
        found.update({version.served_id: version for version in versions.values()})
        for alias in model.aliases.all():
            version = versions[alias.version_id]
            found[f"{model.name}@{alias.name}"] = version
            if alias.is_default:
                found[model.name] = version
    return found


def open_routes() -> list[Route]:
    """The routes that are switched on, by name, with their lines; two queries."""
    return list(Route.objects.filter(enabled=True).prefetch_related("candidates"))


def auto_object(meaning: Mapping[str, ModelVersion], found: Mapping[int, Status]) -> dict[str, Any]:
    """``auto``, over everything."""
    everybody = {version.pk: version for version in meaning.values()}
    return _object(AUTO, 0, AUTO_WORDS, Policy.BALANCED, list(everybody.values()), found)


def route_objects(
    routes: Iterable[Route], meaning: Mapping[str, ModelVersion], found: Mapping[int, Status]
) -> list[dict[str, Any]]:
    """One a route."""
    objects = []
    for route in routes:
        targets = [line.target for line in route.candidates.all()]
        versions = [version for target in targets if (version := meaning.get(target)) is not None]
        created = int(route.created_at.timestamp())
        one = _object(route.name, created, route.description, route.policy, versions, found)
        objects.append({**one, "candidates": targets})
    return objects


def route_object(model_id: str) -> dict[str, Any] | None:
    """The object of one route, or of ``auto``; None where nothing of this kind has the id."""
    routes = [route for route in open_routes() if route.name == model_id]
    if not routes and model_id != AUTO:
        return None
    meaning = meanings(with_versions(Model.objects.all()))
    if model_id == AUTO:
        return auto_object(meaning, statuses(meaning.values()))
    return route_objects(routes, meaning, statuses(meaning.values()))[0]


def _object(
    name: str,
    created: int,
    description: str,
    policy: str,
    versions: list[ModelVersion],
    found: Mapping[int, Status],
) -> dict[str, Any]:
    contexts = [version.facts.get("context_length") or 0 for version in versions]
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "display_name": name,
        "description": description,
        "version": None,
        **status_fields(furthest(found[version.pk] for version in versions)),
        "capabilities": sorted({word for version in versions for word in version.capabilities}),
        "context_length": max(contexts, default=0) or None,
        "policy": str(policy),
    }


def status_fields(status: Status) -> dict[str, Any]:
    """A status as a model's object has it."""
    return {"status": status.status, "reason": status.reason, "stage": status.stage, "eta_s": status.eta_s}
