"""What an operator does with deployments; admin, REST and commands all call these."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from inference.capacity.placement import place
from inference.drafts import check_draft, check_proposed, drafts_for, proposed
from inference.engine_options import check_abilities, check_with_engine
from inference.fit import check_size
from inference.memory import device_rooms, kv_cost_of, need_of
from inference.models import ALIVE, Deployment, Replica, ReplicaState, Schedule
from inference.notify import wake_controller
from mmserve.errors import Conflict, InsufficientMemory, InvalidRequest
from registry.models import ModelVersion, VersionState
from registry.revision import bump
from registry.stamp import Damage, in_words

EDITABLE = frozenset(
    {
        "dtype",
        "context_length",
        "max_streams",
        "kv_cache_bytes",
        "prefix_caching",
        "in_process",
        "max_batched_tokens",
        "tensor_parallel",
        "quantization",
        "speculation",
        "speculative_tokens",
        "draft",
        "guided_decoding",
        "queue_bound",
        "hold_bound",
        "deadline_s",
        "placement",
        "preload",
        "warmup_prompts",
        "on_demand",
        "pinned",
        "priority_class",
        "min_residency_s",
        "max_wait_s",
        "idle_ttl_s",
    }
)


def deployment_name(version: ModelVersion) -> str:
    """A slug that is also a good RQ queue prefix: ``org/name@2`` becomes ``org-name-2``."""
    return re.sub(r"[^a-z0-9_-]+", "-", version.served_id.lower()).strip("-")


@transaction.atomic
def ensure_deployment(version: ModelVersion, *, actor: str) -> Deployment:
    """The version's deployment, made with default options if there is none."""
    found = Deployment.objects.filter(version=version).first()
    if found is not None:
        return found
    name = deployment_name(version)
    if Deployment.objects.filter(name=name).exists():
        name = f"{name}-{version.pk}"
    deployment = proposed(version, name=name)
    check_options(deployment)
    deployment.save()
    bump("deployment.created", name, actor, data={"version": version.served_id})
    return deployment


def configure(deployment: Deployment, changes: dict[str, Any], *, actor: str, reason: str = "") -> Deployment:
    """Change a deployment's options and bounds; a running replica keeps the engine options it was started with.

    ``draft`` is a ModelVersion or None. Where no engine could be asked about engine options, the event says why:
    ``unchecked``.
    """
    for field in changes:
        if field not in EDITABLE:
            raise InvalidRequest(
                f"'{field}' cannot be changed; what can: {', '.join(sorted(EDITABLE))}", param=field
            )
    rows = Deployment.objects.select_related("version__model", "draft__model")
    stored, sketch = rows.get(pk=deployment.pk), rows.get(pk=deployment.pk)
    before = _set(sketch, changes)
    check_options(sketch)
    changed = [field for field, value in changes.items() if value != before[field]]
    check_size(stored, sketch, changed)
    unchecked = check_with_engine(sketch, changed)
    with transaction.atomic():
        row = Deployment.objects.select_for_update().get(pk=deployment.pk)
        before = _set(row, changes)
        if row.draft_id is not None:
            # Whoever archives or deletes it beside this comes before, or after.
            locked = ModelVersion.objects.select_for_update(of=("self",)).select_related("model")
            row.draft = locked.filter(pk=row.draft_id).first()
        check_options(row)
        row.save(update_fields=list(changes))
        details: dict[str, Any] = {"from": _plain(before), "to": _plain(changes)}
        if unchecked:
            details["unchecked"] = unchecked
        bump("deployment.configured", row.name, actor, reason, details)
    return row


MAX_SCHEDULES = 20


@transaction.atomic
def set_schedules(
    deployment: Deployment, wished: Sequence[Mapping[str, Any]], *, actor: str, reason: str = ""
) -> None:
    """Replace a deployment's schedules by these, each of days, start, end and timezone."""
    if len(wished) > MAX_SCHEDULES:
        raise InvalidRequest(f"schedules: at most {MAX_SCHEDULES}", param="schedules")
    Deployment.objects.select_for_update().get(pk=deployment.pk)
    rows = [Schedule(deployment=deployment, **values) for values in wished]
    for row in rows:
        try:
            row.clean_fields(exclude=["deployment"])
        except ValidationError as error:
            field, messages = next(iter(error.message_dict.items()))
            raise InvalidRequest(f"schedules: {field}: {messages[0]}", param="schedules") from error
    before = [str(row) for row in deployment.schedules.all()]
    after = [str(row) for row in rows]
    if before == after:
        return
    deployment.schedules.all().delete()
    Schedule.objects.bulk_create(rows)
    bump("deployment.scheduled", deployment.name, actor, reason, {"from": before, "to": after})
    wake_controller()


@transaction.atomic
def preload(*, actor: str) -> None:
    """Wish for what is to be up whenever a node starts; what had been given up gets a fresh set of tries."""
    rows = Deployment.objects.select_for_update().filter(preload=True, version__state=VersionState.READY)
    for row in rows:
        Replica.objects.filter(deployment=row, state="failed", superseded=False).update(superseded=True)
        changed = not row.replicas or row.asleep or row.failure
        if changed:
            row.replicas, row.asleep, row.wanted_at, row.failure = max(1, row.replicas), False, None, ""
            row.save(update_fields=["replicas", "asleep", "wanted_at", "failure"])
            bump("deployment.preload", row.name, actor, data={"replicas": row.replicas})
    wake_controller()


def _set(row: Deployment, changes: dict[str, Any]) -> dict[str, Any]:
    """Put the changes into the row; what was there before."""
    before = {field: getattr(row, field) for field in changes}
    for field, value in changes.items():
        setattr(row, field, value)
    return before


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As an event tells them."""
    return {
        name: value.served_id if isinstance(value, ModelVersion) else value for name, value in values.items()
    }


def check_options(deployment: Deployment) -> None:
    """Refuse values that the engine could not start with; names the field."""
    try:
        deployment.clean_fields(exclude=["version", "name"])
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise InvalidRequest(f"{field}: {messages[0]}", param=field) from error
    check_abilities(deployment)
    check_draft(deployment)
    native = deployment.version.facts.get("context_length")
    if deployment.context_length and native and deployment.context_length > native:
        raise InvalidRequest(
            f"context_length: {deployment.context_length} tokens asked for, the model was made for {native}",
            param="context_length",
        )
    cost = kv_cost_of(deployment)
    context = deployment.context_length or native
    if cost is not None and context and cost.least_bytes(context) > deployment.kv_cache_bytes:
        both = " with its draft" if deployment.draft else ""
        raise InvalidRequest(
            f"kv_cache_bytes: {deployment.kv_cache_bytes} bytes do not hold one stream of {context} tokens, which "
            f"takes {cost.least_bytes(context)}{both}; set more, or a shorter context_length",
            param="kv_cache_bytes",
        )


@transaction.atomic
def load(version: ModelVersion, *, actor: str, reason: str = "", replicas: int = 1) -> Deployment:
    """Wish for running replicas of a version. Refused, with figures, if it could not fit.

    Loading what is loaded changes nothing. A version that failed to load gets a fresh set of tries.
    """
    if version.state != VersionState.READY:
        why = f": {version.state_reason}" if version.state_reason else ""
        raise Conflict(f"{version.served_id} is {version.state}{why}; only a ready version can be loaded")
    leaving = version.deletion_asked_by or version.model.deletion_asked_by
    if leaving:
        raise Conflict(f"{version.served_id} is being deleted, as {leaving} asked")
    deployment = ensure_deployment(version, actor=actor)
    deployment = Deployment.objects.select_for_update().get(pk=deployment.pk)
    alive = Replica.objects.filter(deployment=deployment, state__in=ALIVE, stop_requested=False).count()
    waits = False
    if alive < replicas:
        rooms = device_rooms()
        need = need_of(deployment, rooms)
        placement = place(need, rooms)
        waits = placement.device_id is None
        if waits and place(need, device_rooms(could_sleep=True)).device_id is None:
            raise InsufficientMemory(f"{version.served_id} cannot be loaded: {'; '.join(placement.reasons)}")
    Replica.objects.filter(deployment=deployment, state="failed", superseded=False).update(superseded=True)
    changed = deployment.replicas != replicas or deployment.asleep or deployment.failure
    deployment.replicas, deployment.failure = replicas, ""
    # What has no room is asleep until others have made it: the controller chooses who goes.
    deployment.asleep, deployment.wanted_at = waits, timezone.now() if waits else None
    deployment.save(update_fields=["replicas", "failure", "asleep", "wanted_at"])
    if changed:
        bump("deployment.load", deployment.name, actor, reason, {"replicas": replicas})
    wake_controller()
    return deployment


@transaction.atomic
def unload(version: ModelVersion, *, actor: str, reason: str = "") -> Deployment:
    """Wish for no replica: running requests finish first (drain), waiting ones are refused by the gateway."""
    deployment = Deployment.objects.select_for_update().filter(version=version).first()
    if deployment is None:
        raise Conflict(f"{version.served_id} was never loaded")
    if deployment.replicas:
        deployment.replicas, deployment.asleep, deployment.wanted_at, deployment.failure = 0, False, None, ""
        deployment.save(update_fields=["replicas", "asleep", "wanted_at", "failure"])
        bump("deployment.unload", deployment.name, actor, reason, {"replicas": 0})
    wake_controller()
    return deployment


@transaction.atomic
def blame_files(
    replica: str, version: ModelVersion, found: Sequence[Damage], *, renewed: bool, actor: str
) -> None:
    """Say which file a load failed for. What will fail again is not tried again, unless its files were renewed."""
    row = Replica.objects.filter(pk=replica, state=ReplicaState.FAILED).first()
    if row is None:
        return
    ended = row.reason or "the engine ended without a reason"
    what = f"{version.served_id}: {in_words(found)}"
    if renewed:
        words = f"{what}; the node's copy was brought anew from the store. The engine's end: {ended}"
    else:
        words = f"{what}; repair the version before it is loaded. The engine's end: {ended}"
    Replica.objects.filter(pk=replica).update(reason=words)
    bump("version.damaged", version.served_id, actor, ended, {"renewed": renewed, **dict(found)})
    if not renewed and Deployment.objects.filter(pk=row.deployment_id, failure="").update(failure=words):
        bump("deployment.failed", row.deployment.name, actor, words)
    wake_controller()


def on_engine_options_proposed(options: dict[str, Any], **_: Any) -> None:
    """Receiver of registry's `engine_options_proposed`: refuse what no deployment could begin with."""
    for name in options:
        if name not in EDITABLE:
            raise InvalidRequest(
                f"engine_options: {name[:50]!r} is none of {', '.join(sorted(EDITABLE))}",
                param="engine_options",
            )
    try:
        row = Deployment(**check_proposed(options))
    except InvalidRequest as error:
        raise InvalidRequest(f"engine_options: {error.message}", param="engine_options") from error
    try:
        row.clean_fields(exclude=["version", "name"])
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise InvalidRequest(f"engine_options: {field}: {messages[0]}", param="engine_options") from error


def on_version_retiring(version: ModelVersion, actor: str, deleting: bool, **_: Any) -> None:
    """Receiver of registry's `version_retiring`: what serves is not taken away; a deployment that sleeps goes along."""
    # Whoever makes it a draft beside this comes before, or after.
    ModelVersion.objects.select_for_update().filter(pk=version.pk).first()
    guessed_for = drafts_for(version)
    if guessed_for:
        names = ", ".join(guessed_for)
        raise Conflict(f"{version.served_id} is the draft of deployment {names}; give it another one first")
    deployment = Deployment.objects.filter(version=version).first()
    if deployment is None:
        return
    if deployment.replicas or deployment.replica_set.filter(state__in=ALIVE).exists():
        raise Conflict(f"{version.served_id} is served by deployment {deployment.name}; unload it first")
    if deleting:
        deployment.delete()
        bump("deployment.deleted", deployment.name, actor, data={"version": version.served_id})
