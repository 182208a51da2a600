"""The ops jobs of a version's files: bring and publish them, verify them, repair them."""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from django.db import transaction

from mmserve.errors import Conflict, InvalidRequest, NotFound
from registry import cache, store
from registry.actions.versions import fail_import, finish_import
from registry.facts import Facts, read_facts
from registry.fetch import Fetcher
from registry.fetch.fetcher import in_words
from registry.gguf_import import convert
from registry.manifest import ManifestEntry, read_manifest
from registry.models import PUBLISHED, ModelVersion, VersionFile, VersionState
from registry.progress import Progress
from registry.report import Report, quiet
from registry.revision import bump
from registry.sources import Wanted, source_for
from registry.stamp import Damage, damage, write_stamp
from registry.store.s3 import remote_files

log = logging.getLogger(__name__)

ACTOR = "ops worker"
# How long a job waits for one of an earlier attempt, which was cancelled, to wind down.
WAIT_S = 45.0
MAX_SLUG_CHARS = 100
FETCHED = "fetched"


def import_version(version_id: int) -> str:
    """Bring the version's files and make it ready; returns the state that it is left in.

    Run twice, it does nothing the second time; run at once with another, it leaves the work to the other.
    After a crash it goes on with what had arrived. A failure leaves the version failed, with the reason, and
    raises.
    """
    version = _version(version_id)
    if version is None:
        return "deleted"
    with _alone(version_id, version.attempt) as alone:
        version = _version(version_id)
        if version is None:
            return "deleted"
        if not alone or version.state != VersionState.FETCHING:
            return version.state
        try:
            _import(version)
        except Exception as error:
            reason = in_words(error)
            log.warning("import of %s failed: %s", version.served_id, reason)
            _fail(version, reason)
            raise
        return version.state


def verify_version(version_id: int, repair: bool = False) -> list[str]:
    """Hash all of a version's files in the store; the paths that are damaged. An event says what was found."""
    version = _version(version_id)
    if version is None or version.state not in PUBLISHED:
        return []
    manifest = cache.manifest_of(version)
    found = _damage(version, manifest)
    kind = "version.damaged" if found else "version.verified"
    bump(kind, version.served_id, ACTOR, data={"files": len(manifest), **dict(found)})
    if found and repair:
        try:
            repair_version(version_id, found)
        except Exception as error:
            bump("version.unrepaired", version.served_id, ACTOR, in_words(error), dict(found))
            raise
    return [path for path, _ in found]


def _damage(version: ModelVersion, manifest: list[ManifestEntry]) -> list[Damage]:
    if store.is_local():
        return damage(store.location(version.path), manifest, full=True)
    work = store.workspace(f"verify-{version.pk}")
    found = []
    try:
        # One after another: each is hashed on its way and gone again.
        for entry in manifest:
            try:
                remotes = remote_files(store.storage(), version.path, [entry])
                Fetcher(work, quiet).fetch(remotes)
            except (InvalidRequest, NotFound) as error:
                found.append(Damage(entry.path, error.message))
            (work / entry.path).unlink(missing_ok=True)
    finally:
        store.clear_workspace(work.name)
    return found


def repair_version(version_id: int, found: list[Damage] | None = None) -> list[str]:
    """Fetch the files of a version anew and put them in the place of damaged ones; the paths that were.

    What is fetched must be what the manifest says: the version means the same files as before.
    """
    version = _version(version_id)
    if version is None or version.state not in PUBLISHED:
        return []
    manifest = cache.manifest_of(version)
    if found is None:
        found = _damage(version, manifest)
    if found:
        work = store.workspace(f"repair-{version.pk}")
        # By the manifest afterwards: the source of a converted version has other files.
        files = _files(version, work, _wanted(version), quiet, lambda stage: None)[0]
        wrong = damage(files, manifest, full=True)
        if wrong:
            raise Conflict(f"{version.served_id}: from its source {wrong[0].path} {wrong[0].words}.")
        _stamped(files, manifest)
        store.replace(files, version.path, [path for path, _ in found])
        store.clear_workspace(work.name)
        bump("version.repaired", version.served_id, ACTOR, data=dict(found))
    return [path for path, _ in found]


def _import(version: ModelVersion) -> None:
    store.sweep()
    progress = Progress(version.pk, version.attempt)
    work = store.workspace(f"import-{version.pk}")
    wanted = _wanted(version, {entry.path: entry.sha256 for entry in cache.manifest_of(version)})
    files, known = _files(version, work, wanted, progress.report, progress.enter)
    progress.enter("hash")
    facts = read_facts(files)
    manifest = read_manifest(files, progress.report, known)
    if files.name == FETCHED:
        _refuse_others(manifest, wanted.sha256)
    progress.enter("publish")
    # A part of a path has 255 bytes at most; the number keeps it apart from every other.
    path = f"{version.model.slug[:MAX_SLUG_CHARS]}/{version.version}-{version.pk}"
    _stamped(files, manifest)
    store.publish(files, path, progress.report)
    _finish(version, path, facts, manifest)
    store.clear_workspace(work.name)


def _wanted(version: ModelVersion, sha256: Mapping[str, str] | None = None) -> Wanted:
    model = version.model
    return Wanted(
        allow_pickle=model.allow_pickle, trust_remote_code=model.trust_remote_code, sha256=sha256 or {}
    )


def _files(
    version: ModelVersion,
    work: Path,
    wanted: Wanted,
    report: Report,
    enter: Callable[[str], None],
) -> tuple[Path, dict[str, str]]:
    """The folder with what the version is made of, and the digests that are known already."""
    # Another source's files are not to be mixed in.
    fetched = work / FETCHED
    origin = work / "source"
    if not origin.exists() or origin.read_text() != version.source_uri:
        shutil.rmtree(fetched, ignore_errors=True)
        origin.write_text(version.source_uri)
    fetched.mkdir(exist_ok=True)
    enter("fetch")
    known = dict(source_for(version.source_uri).fetch(fetched, report, wanted))
    ggufs = list(fetched.glob("*.gguf"))
    if not ggufs:
        return fetched, known
    if len(ggufs) > 1:
        raise InvalidRequest(f"{len(ggufs)} GGUF files were fetched; a version is made of one")
    enter("convert")
    converted = work / "converted"
    shutil.rmtree(converted, ignore_errors=True)
    converted.mkdir()
    convert(ggufs[0], converted, report)
    return converted, {}


def _refuse_others(manifest: list[ManifestEntry], wanted: Mapping[str, str]) -> None:
    """What a document said of the files beforehand holds for what came out of an archive, too."""
    found = {entry.path: entry.sha256 for entry in manifest}
    for path, digest in sorted(wanted.items()):
        if path not in found:
            raise InvalidRequest(f"{path} is in the manifest, but not in the source", param="source_uri")
        if found[path] != digest:
            raise InvalidRequest(f"{path} has the SHA-256 {found[path]}, not {digest}", param="source_uri")


def _stamped(files: Path, manifest: list[ManifestEntry]) -> None:
    """Without this program's own notes, but with the one that later tells whether a file has rotted."""
    for note in files.glob(".*"):
        note.unlink()
    write_stamp(files, (entry.path for entry in manifest))


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


def _fail(version: ModelVersion, reason: str) -> None:
    found = _version(version.pk)
    # A later attempt is not this one's to fail.
    if found is not None and (found.state, found.attempt) == (VersionState.FETCHING, version.attempt):
        fail_import(found, actor=ACTOR, reason=reason)


def _version(version_id: int) -> ModelVersion | None:
    return ModelVersion.objects.select_related("model").filter(pk=version_id).first()


@contextmanager
def _alone(version_id: int, attempt: int) -> Iterator[bool]:
    """Whether nobody else imports the version; the kernel lets go of the lock when the process dies.

    The job of an earlier attempt was told to stop: it is waited for.
    """
    folder = store.work_root()
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + WAIT_S
    with (folder / f"import-{version_id}.lock").open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                if lock.read() == str(attempt) or time.monotonic() > until:
                    yield False
                    return
                time.sleep(0.2)
        lock.truncate(0)
        lock.write(str(attempt))
        lock.flush()
        yield True
