"""From the id that a person or client says to the row: ``name``, ``name@version`` or ``name@alias``."""

from __future__ import annotations

import difflib

from mmserve.errors import ModelNotFound
from registry.models import LABEL, MODEL_NAME, Alias, Model, ModelVersion, VersionState

NEAR_NAMES = 3
# Names that are compared for a near one: a bound, not a page.
MAX_COMPARED = 1000


def find_model(name: str) -> Model:
    """The model of this name; ModelNotFound offers near names."""
    model = Model.objects.filter(name=name).first() if MODEL_NAME.fullmatch(name) else None
    if model is None:
        known = list(Model.objects.values_list("name", flat=True)[:MAX_COMPARED])
        near = difflib.get_close_matches(name[:200], known, NEAR_NAMES)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelNotFound(f"There is no model {name[:200]!r}.{hint}", param="model")
    return model


def find_label(model: Model, label: str) -> ModelVersion | Alias:
    """The model's version or alias of this name."""
    if LABEL.fullmatch(label):
        version = model.versions.select_related("model").filter(version=label).first()
        if version is not None:
            return version
        alias = model.aliases.select_related("model", "version__model").filter(name=label).first()
        if alias is not None:
            return alias
    known = [row.version for row in model.versions.all()] + [row.name for row in model.aliases.all()]
    raise ModelNotFound(
        f"{model.name} has no version or alias {label[:100]!r}; it has {', '.join(known[:20]) or 'none'}.",
        param="model",
    )


def find(model_id: str) -> Model | ModelVersion | Alias:
    """What an id names, as it is."""
    name, at, label = model_id.partition("@")
    model = find_model(name)
    return find_label(model, label) if at else model


def find_candidate(target: str) -> None:
    """Raise ModelNotFound unless there is something of this name that may serve."""
    found = find(target)
    if isinstance(found, ModelVersion) and found.state == VersionState.ARCHIVED:
        raise ModelNotFound(f"{found.served_id} is archived: restore it first.", param="model")


def find_version(model_id: str) -> ModelVersion:
    """The version that an id stands for; a bare name means its default alias, or its only version."""
    found = find(model_id)
    if isinstance(found, Alias):
        return found.version
    if isinstance(found, ModelVersion):
        return found
    default = found.aliases.filter(is_default=True).select_related("version__model").first()
    if default is not None:
        return default.version
    versions = list(found.versions.select_related("model")[:NEAR_NAMES])
    if len(versions) == 1:
        return versions[0]
    names = " or ".join(version.served_id for version in versions)
    raise ModelNotFound(
        f"{found.name} has no default alias; name {names}." if names else f"{found.name} has no version yet.",
        param="model",
    )
