"""Models: register, describe, delete."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.dispatch import Signal

from mmserve.errors import Conflict, InvalidRequest, ModelNotFound
from registry.actions.aliases import forget_alias
from registry.actions.editing import check_editable
from registry.actions.versions import delete_version
from registry.lookup import find_candidate
from registry.models import Model, ModelVersion
from registry.revision import bump
from registry.saving import save_checked

FIELDS = (
    "display_name",
    "description",
    "owner",
    "team",
    "licence",
    "tags",
    "links",
    "allow_pickle",
    "trust_remote_code",
    "fallbacks",
    "first_token_ms",
    "no_fallback_on",
)
EDITABLE = frozenset(FIELDS)
# Sent with ``name`` before a model takes it; a receiver raises Conflict when the name means something already.
model_name_proposed = Signal()


@transaction.atomic
def register_model(name: str, *, actor: str, reason: str = "", **fields: Any) -> Model:
    """A model without versions yet."""
    check_editable(fields, EDITABLE)
    model_name_proposed.send(Model, name=name)
    model = Model(name=name, **fields)
    save_checked(model, unique=f"There is a model {name!r} already.")
    _check_targets(model.fallbacks)
    bump("model.registered", name, actor, reason, fields)
    return model


@transaction.atomic
def update_model(model: Model, *, actor: str, reason: str = "", **changes: Any) -> Model:
    """Change what describes a model; its name is for ever."""
    check_editable(changes, EDITABLE)
    changed = {field: value for field, value in changes.items() if getattr(model, field) != value}
    if changed:
        for field, value in changed.items():
            setattr(model, field, value)
        save_checked(model, unique=f"There is a model {model.name!r} already.")
        if "fallbacks" in changed:
            _check_targets(model.fallbacks)
        bump("model.updated", model.name, actor, reason, changed)
    return model


@transaction.atomic
def delete_model(model: Model, *, actor: str, reason: str = "") -> None:
    """Delete a model with its aliases, versions and files; refused while one of its versions is served."""
    for alias in model.aliases.select_related("model", "version"):
        forget_alias(alias, actor=actor, reason=reason)
    _delete_versions(list(model.versions.select_related("model")), actor=actor, reason=reason)
    model.delete()
    bump("model.deleted", model.name, actor, reason)


def _check_targets(fallbacks: list[str]) -> None:
    for target in fallbacks:
        try:
            find_candidate(target)
        except ModelNotFound as error:
            raise InvalidRequest(f"fallbacks: {error.message}", param="fallbacks") from error


def _delete_versions(versions: list[ModelVersion], *, actor: str, reason: str) -> None:
    """All of them; one that another of them needs goes after that one."""
    refusals: dict[ModelVersion, Conflict] = {}
    for version in versions:
        try:
            delete_version(version, actor=actor, reason=reason)
        except Conflict as error:
            refusals[version] = error
    if refusals and len(refusals) == len(versions):
        raise next(iter(refusals.values()))
    if refusals:
        _delete_versions(list(refusals), actor=actor, reason=reason)
