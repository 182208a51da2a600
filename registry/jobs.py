"""The ops job that brings a version's files: fetch, convert, hash, publish."""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import transaction

from mmserve.errors import InvalidRequest, MmserveError
from registry import store
from registry.actions.versions import fail_import, finish_import
from registry.facts import Facts, read_facts
from registry.gguf_import import convert
from registry.manifest import ManifestEntry, read_manifest
from registry.models import ModelVersion, VersionFile, VersionState
from registry.progress import Progress
from registry.sources import source_for

log = logging.getLogger(__name__)

ACTOR = "ops worker"


def import_version(version_id: int) -> str:
    """Bring the version's files and make it ready; returns the state that it is left in.

    Run twice, it does nothing the second time; run at once with another, it leaves the work to the other.
    After a crash it starts over. A failure leaves the version failed, with the reason, and raises.
    """
    with _alone(version_id) as alone:
        version = ModelVersion.objects.select_related("model").filter(pk=version_id).first()
        if version is None:
            return "deleted"
        if not alone or version.state != VersionState.FETCHING:
            return version.state
        try:
            _import(version)
        except Exception as error:
            reason = error.message if isinstance(error, MmserveError) else f"{type(error).__name__}: {error}"
            log.warning("import of %s failed: %s", version.served_id, reason)
            _fail(version_id, reason)
            raise
        return version.state


def _import(version: ModelVersion) -> None:
    progress = Progress(version.pk, version.attempt)
    work = store.workspace(f"import-{version.pk}")
    try:
        fetched = work / "fetched"
        fetched.mkdir()
        progress.enter("fetch")
        source_for(version.source_uri).fetch(fetched, progress.report)
        files = _converted(fetched, work / "converted", progress)
        progress.enter("hash")
        facts = read_facts(files)
        manifest = read_manifest(files, progress.report)
        progress.enter("publish")
        path = f"{version.model.name.replace('/', '--')}/{version.version}-{version.pk}"
        store.publish(files, path)
        _finish(version, path, facts, manifest)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _converted(fetched: Path, into: Path, progress: Progress) -> Path:
    """The folder with safetensors: as fetched, or converted from the one GGUF file there."""
    ggufs = list(fetched.glob("*.gguf"))
    if not ggufs:
        return fetched
    if len(ggufs) > 1:
        raise InvalidRequest(f"{len(ggufs)} GGUF files were fetched; a version is made of one")
    progress.enter("convert")
    into.mkdir()
    convert(ggufs[0], into, progress.report)
    return into


@transaction.atomic
def _finish(version: ModelVersion, path: str, facts: Facts, manifest: list[ManifestEntry]) -> None:
    version.files.all().delete()
    VersionFile.objects.bulk_create(
        VersionFile(version=version, path=entry.path, size_bytes=entry.size_bytes, sha256=entry.sha256)
        for entry in manifest
    )
    version.path = path
    version.facts = facts.as_dict()
    version.capabilities = version.capabilities or facts.capabilities
    finish_import(version, actor=ACTOR)


def _fail(version_id: int, reason: str) -> None:
    version = ModelVersion.objects.select_related("model").filter(pk=version_id).first()
    if version is not None and version.state == VersionState.FETCHING:
        fail_import(version, actor=ACTOR, reason=reason)


@contextmanager
def _alone(version_id: int) -> Iterator[bool]:
    """Whether nobody else imports the version; the kernel lets go of the lock when the process dies."""
    folder = store.root() / store.WORK
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"import-{version_id}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
