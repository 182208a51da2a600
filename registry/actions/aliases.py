"""Aliases: promote, roll back, choose the default, delete."""

from __future__ import annotations

from django.db import transaction
from django.db.models import F
from django.dispatch import Signal
from django.utils import timezone

from mmserve.errors import Conflict, NotFound
from registry.models import Alias, Event, Model, ModelVersion, VersionState
from registry.revision import bump
from registry.saving import save_checked

FIRST_ALIAS = "production"
PROMOTED, ROLLED_BACK, DELETED = "alias.promoted", "alias.rolled_back", "alias.deleted"
MADE_DEFAULT = "alias.default"
# Sent before an alias goes, inside the transaction; a receiver that has a use for it raises Conflict.
alias_retiring = Signal()


@transaction.atomic
def promote(
    version: ModelVersion,
    *,
    actor: str,
    alias: str | None = None,
    expected_revision: int | None = None,
    reason: str = "",
) -> Alias:
    """Move an alias (the default one, if none is named) to a ready version.

    ``expected_revision`` is the alias's revision that the caller saw (0: none yet); a loser gets Conflict
    with who moved it where. The first alias of a model becomes its default.
    """
    if version.state != VersionState.READY:
        raise Conflict(f"{version.served_id} is {version.state}; only a ready version can be promoted.")
    model = version.model
    row = _alias(model, alias)
    if row is None:
        return _create(version, alias or FIRST_ALIAS, expected_revision, actor, reason)
    expected = row.revision if expected_revision is None else expected_revision
    if expected == row.revision and row.version_id == version.pk:
        return row
    return _move(row, version, expected, PROMOTED, actor, reason)


@transaction.atomic
def rollback(
    model: Model,
    *,
    actor: str,
    alias: str | None = None,
    expected_revision: int | None = None,
    reason: str = "",
) -> Alias:
    """Move an alias back to the version that it meant before; again: to the one before that."""
    row = _alias(model, alias)
    if row is None:
        raise NotFound(f"{model.name} has no alias {alias or 'yet'}.", param="alias")
    previous = _history(row)
    if len(previous) < 2:
        raise Conflict(f"{row} has not meant another version before {row.version.version}.")
    version = model.versions.filter(version=previous[-2]).first()
    if version is None or version.state != VersionState.READY:
        state = version.state if version else "deleted"
        raise Conflict(f"{row} meant {model.name}@{previous[-2]} before, which is {state} now.")
    expected = row.revision if expected_revision is None else expected_revision
    return _move(row, version, expected, ROLLED_BACK, actor, reason)


@transaction.atomic
def set_default_alias(alias: Alias, *, actor: str, reason: str = "") -> Alias:
    """Make this alias what the model's bare name means."""
    if alias.is_default:
        return alias
    Alias.objects.filter(model=alias.model_id, is_default=True).update(
        is_default=False, revision=F("revision") + 1
    )
    alias.is_default = True
    alias.revision += 1
    save_checked(alias, unique=f"Somebody else chose a default alias of {alias.model.name} just now.")
    bump(MADE_DEFAULT, str(alias), actor, reason, {"to": alias.version.version})
    return alias


@transaction.atomic
def delete_alias(alias: Alias, *, actor: str, reason: str = "") -> None:
    """Delete an alias; the default one only when it is the last."""
    if alias.is_default and alias.model.aliases.exclude(pk=alias.pk).exists():
        raise Conflict(f"{alias} is what {alias.model.name} means; make another alias the default first.")
    forget_alias(alias, actor=actor, reason=reason)


def forget_alias(alias: Alias, *, actor: str, reason: str) -> None:
    """Delete it whatever it is: for a model that goes as a whole."""
    alias_retiring.send(Alias, alias=alias)
    name, version = str(alias), alias.version.version
    alias.delete()
    bump(DELETED, name, actor, reason, {"from": version})


def _alias(model: Model, name: str | None) -> Alias | None:
    rows = model.aliases.select_related("model", "version")
    return rows.filter(is_default=True).first() if name is None else rows.filter(name=name).first()


def _create(version: ModelVersion, name: str, expected: int | None, actor: str, reason: str) -> Alias:
    model = version.model
    if expected:
        raise Conflict(f"{model.name}@{name} does not exist, so its revision is not {expected}.")
    if model.versions.filter(version=name).exists():
        raise Conflict(f"{model.name}@{name} is a version already.", param="alias")
    row = Alias(model=model, name=name, version=version, is_default=not model.aliases.exists())
    save_checked(row, unique=f"Somebody else created {model.name}@{name} just now.")
    data = {"from": None, "to": version.version, "revision": row.revision, "default": row.is_default}
    bump(PROMOTED, str(row), actor, reason, data)
    return row


def _move(row: Alias, version: ModelVersion, expected: int, kind: str, actor: str, reason: str) -> Alias:
    before = row.version.version
    moved = Alias.objects.filter(pk=row.pk, revision=expected).update(
        version=version, revision=F("revision") + 1, updated_at=timezone.now()
    )
    if not moved:
        raise Conflict(_who_moved_it(row, expected))
    row.refresh_from_db()
    bump(kind, str(row), actor, reason, {"from": before, "to": version.version, "revision": row.revision})
    return row


def _who_moved_it(row: Alias, expected: int) -> str:
    row.refresh_from_db()
    last = Event.objects.filter(subject=str(row), kind__in=(PROMOTED, ROLLED_BACK)).first()
    who = f": {last.actor} moved it at {last.at:%Y-%m-%d %H:%M:%S} UTC" if last else ""
    return f"{row} is at revision {row.revision}, not {expected}, and means {row.version.version} now{who}."


def meant_before(row: Alias) -> str | None:
    """The version that a rollback would go to."""
    before = _history(row)[-2:-1]
    return before[0] if before else None


def _history(row: Alias) -> list[str]:
    """The versions that the alias has meant, without those that were rolled back."""
    events = Event.objects.filter(subject=str(row), kind__in=(PROMOTED, ROLLED_BACK, DELETED))
    stack: list[str] = []
    for kind, data in events.order_by("id").values_list("kind", "data"):
        if kind == PROMOTED:
            stack.append(data["to"])
        elif kind == ROLLED_BACK:
            stack.pop()
        else:
            stack.clear()
    return stack
