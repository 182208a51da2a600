"""``GET /v1/models``: what is registered is encoded once a revision; what serves is looked at each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from inference.model_objects import model_object, with_versions
from inference.route_objects import auto_object, meanings, open_routes, route_objects, status_fields
from inference.status import Status, furthest, live_statuses, status_of_files
from registry.models import Event, Model, ModelVersion
from routing.models.routes import Route

encode = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All models as one configuration has them, each already encoded as if nothing were served."""

    stamp: tuple[Any, ...]
    models: list[Model]
    resting: dict[int, Status]  # by version
    encoded: list[bytes]
    place: dict[int, int]  # from a version to its model's place in the lists
    meaning: dict[str, ModelVersion]  # what each id stands for
    routes: list[Route]
    auto: dict[str, Any]  # as if nothing were served


_latest: Listing | None = None


def listing() -> bytes:
    """The body: OpenAI's list of all models by name, then auto and the routes; a fixed number of queries."""
    known = _of_now()
    live = live_statuses()
    changed = {known.place[pk] for pk, status in live.items() if status != known.resting.get(pk)}
    encoded = known.encoded
    found = {**known.resting, **live}
    if changed:
        encoded = list(encoded)
        for place in changed:
            encoded[place] = encode(model_object(known.models[place], found))
    auto = {**known.auto, **status_fields(furthest(live.values()))} if live else known.auto
    routes = [encode(one) for one in (auto, *route_objects(known.routes, known.meaning, found))]
    return b'{"object":"list","data":[' + b",".join((*encoded, *routes)) + b"]}"


def _of_now() -> Listing:
    """What was encoded for the last event, or anew. The stamp is read first: at worst one list too many is made."""
    global _latest
    stamp = Event.objects.order_by("-id").values_list("id", "revision", "at").first() or ()
    known = _latest
    if known is None or known.stamp != stamp:
        _latest = known = _made(stamp)
    return known


def _made(stamp: tuple[Any, ...]) -> Listing:
    models = list(with_versions(Model.objects.all()))
    versions = [(place, version) for place, model in enumerate(models) for version in model.versions.all()]
    resting = {version.pk: status_of_files(version) for _, version in versions}
    meaning = meanings(models)
    return Listing(
        stamp=stamp,
        models=models,
        resting=resting,
        encoded=[encode(model_object(model, resting)) for model in models],
        place={version.pk: place for place, version in versions},
        meaning=meaning,
        routes=open_routes(),
        auto=auto_object(meaning, resting),
    )
