"""From a document to what would have to be done, and doing it: one transaction, each step one of registry.actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.db import transaction

from mmserve.errors import Conflict, InvalidRequest, ModelNotFound
from registry import actions
from registry.actions.models import FIELDS as MODEL_FIELDS
from registry.actions.versions import PRICES as PRICE_FIELDS
from registry.lookup import find_candidate
from registry.models import PUBLISHED, Alias, Model, ModelVersion, VersionFile, VersionState
from registry.portable.document import (
    Document,
    PortableModel,
    PortableVersion,
    price_text,
    version_values,
)
from registry.portable.sections import Change, bound, sections
from registry.saving import check

# Done last: what is retired may have been in use until a step before.
RETIRING = ("archive version", "delete alias")


def plan(document: Document, *, prune: bool = False, fetch: bool = True) -> list[Change]:
    """What differs between the document and the registry, in the order in which it is done."""
    changes: list[Change] = []
    for wanted in document.models:
        model = Model.objects.filter(name=wanted.name).first()
        changes += _model(wanted, model)
        for version in wanted.versions:
            changes += _version(wanted.name, version, model, fetch=fetch)
        changes += _aliases(wanted, model)
    retiring = [change for change in changes if change.what in RETIRING]
    changes = [change for change in changes if change.what not in RETIRING]
    before = {change.subject: change.waits for change in changes}
    for place, wanted in enumerate(document.models):
        changes += _fallbacks(place, wanted, before)
    for section in sections():
        rows = document.sections.get(section.name)
        if rows is not None:
            changes += section.plan(rows, before, prune=prune)
    changes += retiring
    if prune:
        names = {wanted.name for wanted in document.models}
        for model in Model.objects.exclude(name__in=names):
            changes.append(Change("delete model", model.name, {}, bound(actions.delete_model, model)))
        for wanted in document.models:
            labels = [version.version for version in wanted.versions]
            for row in ModelVersion.objects.filter(model__name=wanted.name).exclude(version__in=labels):
                changes.append(
                    Change("delete version", row.served_id, {}, bound(actions.delete_version, row))
                )
    return changes


@transaction.atomic
def apply(
    document: Document, *, actor: str, reason: str = "", prune: bool = False, fetch: bool = True
) -> list[Change]:
    """Do what the plan says, all or nothing; what waits is left for the next time."""
    done: list[Change] = []
    # Each step may make the next one possible: a model, then its versions, then what names them.
    for change in plan(document, prune=prune, fetch=fetch):
        if not change.waits:
            change.do(actor, reason)
        done.append(change)
    return done


def _model(wanted: PortableModel, model: Model | None) -> Iterator[Change]:
    fields = {name: getattr(wanted, name) for name in MODEL_FIELDS if name != "fallbacks"}
    if model is None:
        yield Change(
            "register model", wanted.name, fields, bound(actions.register_model, wanted.name, **fields)
        )
        return
    changed = {name: value for name, value in fields.items() if getattr(model, name) != value}
    if changed:
        shown = {name: [getattr(model, name), value] for name, value in changed.items()}
        yield Change("change model", wanted.name, shown, bound(actions.update_model, model, **changed))


def _fallbacks(place: int, wanted: PortableModel, before: Mapping[str, str]) -> Iterator[Change]:
    """Who stands in for a model may be another one of the document: this comes once all of them are there."""
    model = Model.objects.filter(name=wanted.name).first() or Model(name=wanted.name)
    known, model.fallbacks = model.fallbacks, wanted.fallbacks
    if known == wanted.fallbacks:
        return
    waits = ""
    try:
        check(model)
        for target in wanted.fallbacks:
            try:
                find_candidate(target)
            except ModelNotFound as error:
                if target not in before:
                    raise InvalidRequest(f"fallbacks: {error.message}") from error
                waits = waits or before[target]
    except InvalidRequest as error:
        raise InvalidRequest(
            f"model {wanted.name}: {error.message}", param=f"models[{place}].fallbacks"
        ) from error

    def change(actor: str, reason: str) -> None:
        row = Model.objects.get(name=wanted.name)
        actions.update_model(row, actor=actor, reason=reason, fallbacks=wanted.fallbacks)

    yield Change("change fallbacks", wanted.name, {"fallbacks": [known, wanted.fallbacks]}, change, waits)


def _version(name: str, wanted: PortableVersion, model: Model | None, *, fetch: bool) -> Iterator[Change]:
    subject = f"{name}@{wanted.version}"
    row = model.versions.filter(version=wanted.version).first() if model else None
    fields = {field: getattr(wanted, field) for field in version_values(row or ModelVersion())}
    if row is None:
        shown = {
            "source_uri": wanted.source_uri,
            **{field: value for field, value in fields.items() if value},
        }

        def register(actor: str, reason: str) -> None:
            owner = Model.objects.get(name=name)
            made = actions.register_version(
                owner, wanted.version, wanted.source_uri, actor=actor, reason=reason, **fields
            )
            VersionFile.objects.bulk_create(
                VersionFile(version=made, path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
                for file in wanted.files
            )
            if wanted.archived:
                actions.archive_version(made, actor=actor, reason=reason)
            elif fetch:
                actions.import_version(made, actor=actor, reason=reason)

        yield Change("register version", subject, shown, register)
        return
    if row.source_uri != wanted.source_uri:
        raise Conflict(
            f"{subject} comes from {row.source_uri}, not {wanted.source_uri}: give what is new another version",
            param="source_uri",
        )
    known = version_values(row)
    changed = {field: value for field, value in fields.items() if _differs(field, known[field], value)}
    if row.state in PUBLISHED and "engine_options" in changed:
        raise Conflict(
            f"{subject} is published: its engine_options cannot change; give them another version",
            param="engine_options",
        )
    # An empty list: whatever its files say.
    if not wanted.capabilities:
        changed.pop("capabilities", None)
    if changed:
        shown = {field: [known[field], value] for field, value in changed.items()}
        yield Change("change version", subject, shown, bound(actions.update_version, row, **changed))
    if wanted.archived and row.state != VersionState.ARCHIVED:
        yield Change("archive version", subject, {}, bound(actions.archive_version, row))
    elif not wanted.archived and row.state == VersionState.ARCHIVED:
        yield Change("restore version", subject, {}, bound(actions.restore_version, row))
    elif fetch and row.state in (VersionState.REGISTERED, VersionState.FAILED):
        yield Change("fetch version", subject, {}, bound(actions.import_version, row))


def _aliases(wanted: PortableModel, model: Model | None) -> Iterator[Change]:
    rows = {row.name: row for row in model.aliases.select_related("version", "model")} if model else {}
    # The default one first: a model's first alias becomes its default.
    for alias in sorted(wanted.aliases, key=lambda name: name != wanted.default_alias):
        to = wanted.aliases[alias]
        subject = f"{wanted.name}@{alias}"
        row = rows.get(alias)
        if row is not None and row.version.version == to:
            continue
        version = model.versions.select_related("model").filter(version=to).first() if model else None
        known = version is not None or any(one.version == to for one in wanted.versions)
        if not known:
            raise Conflict(
                f"{subject} would mean {wanted.name}@{to}, which is not in the document", param="aliases"
            )
        waits = (
            "" if version and version.state == VersionState.READY else f"{wanted.name}@{to} is not ready yet"
        )
        shown = {"version": [row.version.version if row else None, to]}
        yield Change("promote", subject, shown, bound(actions.promote, version, alias=alias), waits)
    for name, row in rows.items():
        if name not in wanted.aliases:
            yield Change("delete alias", f"{wanted.name}@{name}", {}, bound(actions.delete_alias, row))
    default = wanted.default_alias
    if default and default in rows and not rows[default].is_default:
        shown = {"default": [next((row.name for row in rows.values() if row.is_default), None), default]}
        yield Change(
            "make default", f"{wanted.name}@{default}", shown, bound(_make_default, wanted.name, default)
        )


def _make_default(name: str, alias: str, *, actor: str, reason: str) -> None:
    row = Alias.objects.select_related("model", "version").get(model__name=name, name=alias)
    actions.set_default_alias(row, actor=actor, reason=reason)


def _differs(field: str, known: Any, wanted: Any) -> bool:
    return (price_text(wanted) if field in PRICE_FIELDS else wanted) != known
