"""Versions: register, import, archive, delete. TRANSITIONS is the written state machine."""

from __future__ import annotations

import datetime
import logging
from typing import Any

import django_rq
from django.db import transaction
from django.db.models import ProtectedError
from django.dispatch import Signal
from django.utils import timezone
from redis import RedisError
from rq.job import JobStatus

from mmserve.errors import Conflict, MmserveError, Unavailable
from registry import sources, store
from registry.actions.editing import check_editable
from registry.models import PUBLISHED, Model, ModelVersion, VersionFile, VersionState
from registry.revision import bump
from registry.saving import save_checked

log = logging.getLogger(__name__)

TRANSITIONS: dict[str, frozenset[str]] = {
    VersionState.REGISTERED: frozenset({VersionState.FETCHING, VersionState.ARCHIVED}),
    VersionState.FETCHING: frozenset({VersionState.READY, VersionState.FAILED}),
    VersionState.FAILED: frozenset({VersionState.FETCHING, VersionState.ARCHIVED}),
    VersionState.READY: frozenset({VersionState.ARCHIVED}),
    # Back to ready only if its files were whole once: restore_version checks.
    VersionState.ARCHIVED: frozenset({VersionState.READY}),
}
PRICES = ("price_input", "price_cached_input", "price_output", "price_device_hour")
EDITABLE = frozenset({"description", "capabilities", "tags", "engine_options", *PRICES})
IMPORT_JOB = "registry.jobs.import_version"
VERIFY_JOB = "registry.jobs.verify_version"
IMPORT_TIMEOUT_S = 24 * 3600
# A job that moves bytes writes its progress every second; RQ's worker beats for a job every 30 s at most.
SILENT_AFTER = datetime.timedelta(seconds=20)
JOB_LOST_AFTER = datetime.timedelta(seconds=100)
# Without Redis only its silence tells: a conversion may be silent for long.
LOST_AFTER = datetime.timedelta(minutes=10)

# Sent inside the transaction before a version is archived or deleted, with ``version``, ``actor``, ``reason``
# and ``deleting``. Whoever serves it raises Conflict, or lets go of what it holds.
version_retiring = Signal()
# Sent with ``options`` before a version's engine options are kept. Whoever runs engines raises InvalidRequest.
engine_options_proposed = Signal()


@transaction.atomic
def register_version(
    model: Model, version: str, source_uri: str, *, actor: str, reason: str = "", **fields: Any
) -> ModelVersion:
    """A version with its source; import_version brings the files."""
    check_editable(fields, EDITABLE)
    sources.check(source_uri)
    if model.aliases.filter(name=version).exists():
        raise Conflict(f"{model.name}@{version} is an alias already.", param="version")
    _check_options(fields)
    row = ModelVersion(model=model, version=version, source_uri=source_uri, **fields)
    save_checked(row, unique=f"There is a version {model.name}@{version} already.")
    bump("version.registered", row.served_id, actor, reason, {"source_uri": source_uri})
    return row


@transaction.atomic
def update_version(version: ModelVersion, *, actor: str, reason: str = "", **changes: Any) -> ModelVersion:
    """Change prices, capabilities, tags or description; once it is ready its engine options stay, too."""
    check_editable(changes, EDITABLE)
    changed = {field: value for field, value in changes.items() if getattr(version, field) != value}
    if changed:
        _check_options(changed)
        before = {field: getattr(version, field) for field in changed}
        for field, value in changed.items():
            setattr(version, field, value)
        save_checked(version, unique=f"There is a version {version.served_id} already.")
        data = {
            field: {"from": _plain(before[field]), "to": _plain(value)} for field, value in changed.items()
        }
        bump("version.updated", version.served_id, actor, reason, data)
    return version


def import_version(version: ModelVersion, *, actor: str, reason: str = "") -> ModelVersion:
    """Have an ops job bring the files; also the way to retry after a failure."""
    with transaction.atomic():
        if version.state == VersionState.FETCHING and _abandoned(version):
            version.progress = {}
        else:
            transition(version, VersionState.FETCHING)
        version.state_reason = ""
        version.attempt += 1
        version.progress = {"stage": "queued", "at": timezone.now().isoformat()}
        version.save(update_fields=["progress", "state_reason", "attempt"])
        bump("version.fetching", version.served_id, actor, reason, {"source_uri": version.source_uri})
        transaction.on_commit(lambda: _enqueue(version, actor))
    return version


@transaction.atomic
def finish_import(version: ModelVersion, *, actor: str) -> None:
    """The job's end: path, facts and capabilities are set on ``version``, and it becomes ready."""
    transition(version, VersionState.READY, only_from=VersionState.FETCHING)
    version.ready_at = timezone.now()
    version.progress = {}
    # Not by save(): from here on it refuses to change what makes a version.
    ModelVersion.objects.filter(pk=version.pk).update(
        **{name: getattr(version, name) for name in ("path", "facts", "capabilities", "ready_at", "progress")}
    )
    bump("version.ready", version.served_id, actor, "", {"facts": version.facts})


@transaction.atomic
def fail_import(version: ModelVersion, *, actor: str, reason: str) -> None:
    """The job's other end."""
    transition(version, VersionState.FAILED)
    version.progress = {}
    version.state_reason = reason
    version.save(update_fields=["progress", "state_reason"])
    bump("version.failed", version.served_id, actor, reason)


@transaction.atomic
def cancel_import(version: ModelVersion, *, actor: str, reason: str = "") -> ModelVersion:
    """Stop bringing the files; the job notices within seconds, and a later import goes on where it was."""
    if version.state != VersionState.FETCHING:
        raise Conflict(
            f"{version.served_id} is {version.state}; only what is being fetched can be cancelled."
        )
    words = f"Cancelled by {actor}{f': {reason}' if reason else ''}."
    fail_import(version, actor=actor, reason=words)
    return version


def verify_version(
    version: ModelVersion, *, actor: str, reason: str = "", repair: bool = False
) -> ModelVersion:
    """Have an ops job hash all files; what it finds is an event. ``repair`` fetches damaged ones again."""
    if version.state not in PUBLISHED:
        raise Conflict(f"{version.served_id} is {version.state}: it has no files to verify.")
    with transaction.atomic():
        bump("version.verifying", version.served_id, actor, reason, {"repair": repair})
        transaction.on_commit(lambda: _enqueue_verify(version, repair))
    return version


def repair_version(version: ModelVersion, *, actor: str, reason: str = "") -> ModelVersion:
    """Verify, and fetch from the source again what has rotted."""
    return verify_version(version, actor=actor, reason=reason, repair=True)


@transaction.atomic
def duplicate_version(
    version: ModelVersion, label: str, *, actor: str, reason: str = "", **changes: Any
) -> ModelVersion:
    """A new version of the same files with other options or prices; ready at once, if this one's files are here.

    ``changes`` are fields of EDITABLE; what is not named is as in the original.
    """
    check_editable(changes, EDITABLE)
    _check_options(changes)
    model = version.model
    if model.aliases.filter(name=label).exists():
        raise Conflict(f"{model.name}@{label} is an alias already.", param="version")
    kept = {field: getattr(version, field) for field in EDITABLE}
    row = ModelVersion(model=model, version=label, source_uri=version.source_uri, **{**kept, **changes})
    if version.ready_at is not None:
        # The files are shared: they go with the last version that has them.
        row.state, row.path, row.facts = VersionState.READY, version.path, version.facts
        row.ready_at = timezone.now()
    save_checked(row, unique=f"There is a version {model.name}@{label} already.")
    VersionFile.objects.bulk_create(
        VersionFile(version=row, path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
        for file in version.files.all()
    )
    data = {"from": version.version, **{field: _plain(value) for field, value in changes.items()}}
    bump("version.duplicated", row.served_id, actor, reason, data)
    return row


@transaction.atomic
def archive_version(version: ModelVersion, *, actor: str, reason: str = "") -> ModelVersion:
    """Keep it for history, refuse to serve it; refused while an alias names it or a deployment serves it."""
    names = [str(alias) for alias in version.aliases.select_related("model")]
    if names:
        raise Conflict(
            f"{version.served_id} is what {', '.join(names)} means; promote another version first."
        )
    version_retiring.send(ModelVersion, version=version, actor=actor, reason=reason, deleting=False)
    transition(version, VersionState.ARCHIVED)
    bump("version.archived", version.served_id, actor, reason)
    return version


@transaction.atomic
def restore_version(version: ModelVersion, *, actor: str, reason: str = "") -> ModelVersion:
    """Bring an archived version back, if its files were whole."""
    if version.state == VersionState.ARCHIVED and version.ready_at is None:
        raise Conflict(f"{version.served_id} never had its files; register it anew.")
    transition(version, VersionState.READY, only_from=VersionState.ARCHIVED)
    bump("version.restored", version.served_id, actor, reason)
    return version


@transaction.atomic
def delete_version(version: ModelVersion, *, actor: str, reason: str = "") -> None:
    """Delete a version and its files; refused while it is fetched, named or served."""
    if version.state == VersionState.FETCHING and not _abandoned(version):
        raise Conflict(f"{version.served_id} is being fetched; wait for the job to end.")
    names = [str(alias) for alias in version.aliases.select_related("model")]
    if names:
        raise Conflict(
            f"{version.served_id} is what {', '.join(names)} means; promote another version first."
        )
    version_retiring.send(ModelVersion, version=version, actor=actor, reason=reason, deleting=True)
    workspace = f"import-{version.pk}"
    served_id, path = version.served_id, version.path
    try:
        version.delete()
    except ProtectedError as error:
        users = ", ".join(sorted(str(row) for row in error.protected_objects))
        raise Conflict(f"{served_id} is in use by {users}.") from error
    bump("version.deleted", served_id, actor, reason)
    transaction.on_commit(lambda: store.clear_workspace(workspace), robust=True)
    if path and not ModelVersion.objects.filter(path=path).exists():
        transaction.on_commit(lambda: store.remove(path), robust=True)


def transition(version: ModelVersion, to: str, *, only_from: str | None = None) -> None:
    """Move the state by compare-and-set; Conflict if the table forbids it or somebody moved it first."""
    if to not in TRANSITIONS[version.state] or only_from not in (None, version.state):
        raise Conflict(f"{version.served_id} is {version.state}; from there it cannot become {to}.")
    moved = ModelVersion.objects.filter(pk=version.pk, state=version.state).update(state=to)
    if not moved:
        version.refresh_from_db(fields=["state"])
        raise Conflict(f"{version.served_id} became {version.state} meanwhile.")
    version.state = to


def recover_imports() -> None:
    """Ask again for what a job was fetching when it died; what had arrived is not fetched twice."""
    for version in ModelVersion.objects.select_related("model").filter(state=VersionState.FETCHING):
        if _abandoned(version):
            try:
                import_version(version, actor="controller", reason="The job that brought its files died.")
            except MmserveError as error:
                log.warning("%s is not fetched again yet: %s", version.served_id, error)


def _abandoned(version: ModelVersion) -> bool:
    """Whether nobody brings its files any more: no progress for long, and RQ knows of no living job."""
    at = version.progress.get("at")
    if at is not None and timezone.now() - datetime.datetime.fromisoformat(at) < SILENT_AFTER:
        return False
    try:
        job = django_rq.get_queue("ops").fetch_job(_job_id(version))
        if job is None:
            return True
        status = job.get_status()
    except RedisError:
        return at is None or timezone.now() - datetime.datetime.fromisoformat(at) > LOST_AFTER
    if status == JobStatus.STARTED and job.last_heartbeat is not None:
        # The worker beats for its job, also while a conversion says nothing for minutes.
        return timezone.now() - _aware(job.last_heartbeat) > JOB_LOST_AFTER
    return status not in (JobStatus.QUEUED, JobStatus.DEFERRED, JobStatus.SCHEDULED)


def _aware(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _job_id(version: ModelVersion) -> str:
    return f"import-{version.pk}-{version.attempt}"


def _check_options(fields: dict[str, Any]) -> None:
    if fields.get("engine_options"):
        engine_options_proposed.send(ModelVersion, options=fields["engine_options"])


def _enqueue(version: ModelVersion, actor: str) -> None:
    queue = django_rq.get_queue("ops", commit_mode="auto")
    try:
        queue.enqueue(
            IMPORT_JOB,
            version.pk,
            job_id=_job_id(version),
            description=f"import {version.served_id}",
            failure_ttl=7 * 24 * 3600,
            job_timeout=IMPORT_TIMEOUT_S,
        )
    except RedisError as error:
        fail_import(version, actor=actor, reason=f"The job could not be queued: {error}")
        raise Unavailable("Redis does not answer, so the import was not queued; try again.") from error


def _enqueue_verify(version: ModelVersion, repair: bool) -> None:
    queue = django_rq.get_queue("ops", commit_mode="auto")
    try:
        queue.enqueue(
            VERIFY_JOB,
            version.pk,
            repair,
            description=f"verify {version.served_id}",
            job_timeout=IMPORT_TIMEOUT_S,
        )
    except RedisError as error:
        raise Unavailable("Redis does not answer, so nothing was queued; try again.") from error


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, list, dict, type(None))) else str(value)
