"""Deletion of what is served: drain first, delete when the last engine is gone.

The wish is a row, so it survives a restart.
"""

from __future__ import annotations

import logging

from django.db import transaction

from inference.actions import unload
from inference.drafts import drafts_for
from inference.models import ALIVE, Deployment, Replica
from mmserve.errors import Conflict
from registry.actions import delete_alias, delete_model, delete_version
from registry.models import Alias, Model, ModelVersion
from registry.revision import bump

log = logging.getLogger(__name__)


def delete(row: Model | ModelVersion | Alias, *, actor: str, reason: str = "", drain: bool = False) -> bool:
    """Delete what an id names; False: it is drained first, and goes when its engines have finished."""
    if isinstance(row, Alias):
        delete_alias(row, actor=actor, reason=reason)
        return True
    if drain:
        return drain_and_delete(row, actor=actor, reason=reason)
    _delete(row, actor=actor, reason=reason)
    return True


@transaction.atomic
def drain_and_delete(row: Model | ModelVersion, *, actor: str, reason: str = "") -> bool:
    """Unload whatever serves it and delete it; False: its engines finish their requests first.

    Raises Conflict for what an alias of a living model names, or what is being fetched.
    """
    deployments = _deployments(row)
    _refuse_drafts(row)
    if isinstance(row, ModelVersion) and row.aliases.exists():
        # Says which aliases: promoting another version comes first, drained or not.
        delete_version(row, actor=actor, reason=reason)
    for deployment in deployments:
        unload(deployment.version, actor=actor, reason=reason)
    if not _serves(row):
        _delete(row, actor=actor, reason=reason)
        return True
    row.deletion_asked_by = actor
    row.save(update_fields=["deletion_asked_by"])
    subject = row.name if isinstance(row, Model) else row.served_id
    bump("model.deletion_asked", subject, actor, reason, {"draining": [str(one) for one in deployments]})
    return False


def finish_deletions() -> None:
    """Delete what was drained meanwhile; the controller calls this at every pass."""
    for kind in (ModelVersion, Model):
        for row in kind.objects.exclude(deletion_asked_by=""):
            if _serves(row):
                continue
            try:
                _delete(row, actor=row.deletion_asked_by, reason="drained")
            except Conflict as error:
                log.warning("%s cannot be deleted yet: %s", row, error)


def _deployments(row: Model | ModelVersion) -> list[Deployment]:
    rows = Deployment.objects.select_related("version__model")
    found = rows.filter(version__model=row) if isinstance(row, Model) else rows.filter(version=row)
    return list(found)


def _refuse_drafts(row: Model | ModelVersion) -> None:
    """What guesses for others is not drained: it would never be gone."""
    versions = row.versions.select_related("model") if isinstance(row, Model) else [row]
    own = {str(one) for one in _deployments(row)}
    for version in versions:
        others = [name for name in drafts_for(version) if name not in own]
        if others:
            raise Conflict(
                f"{version.served_id} is the draft of deployment {', '.join(others)}; give it another one first"
            )


def _serves(row: Model | ModelVersion) -> bool:
    return Replica.objects.filter(deployment__in=_deployments(row), state__in=ALIVE).exists()


def _delete(row: Model | ModelVersion, *, actor: str, reason: str) -> None:
    if isinstance(row, Model):
        delete_model(row, actor=actor, reason=reason)
    else:
        delete_version(row, actor=actor, reason=reason)
