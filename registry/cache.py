"""A node's files of versions: from a local store as they lie, from a remote one through a bounded cache.

    <CACHE_DIR>/versions/<entry>/        the files and their stamp; there only when whole (one rename)
    <CACHE_DIR>/versions/<entry>.lock    held (exclusive) by the one process that brings them; others wait
    <CACHE_DIR>/versions/<entry>.use     held (shared) by whoever loads or serves them: never evicted
    <CACHE_DIR>/versions/<entry>.room    the bytes that whoever brings them will need
    <CACHE_DIR>/versions/<entry>.pin     an operator's wish: never evicted
    <CACHE_DIR>/versions/all.lock        held while room is made

Locks are flock's: the kernel lets go of them when their process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from django.conf import settings

from mmserve.errors import Conflict
from registry import store
from registry.fetch import Fetcher
from registry.manifest import ManifestEntry
from registry.models import ModelVersion
from registry.report import Report, quiet
from registry.stamp import STAMP, Damage, damage, in_words, is_untouched, write_stamp
from registry.store.s3 import remote_files

LOCK, USE, PIN, ROOM, BRINGING, REMOVED = ".lock", ".use", ".pin", ".room", ".bringing", ".removed"
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One version in the cache."""

    name: str
    folder: Path
    size_bytes: int
    used_at: float  # unix time
    pinned: bool
    in_use: bool


class Held:
    """Files that stay while this is held: not evicted, not pruned."""

    def __init__(self, folder: Path, use: IO[str] | None) -> None:
        self.folder = folder
        self._use = use

    def release(self) -> None:
        """Let go."""
        if self._use is not None:
            self._use.close()
            self._use = None


def root() -> Path:
    """The cache's folder."""
    return settings.CACHE_DIR / "versions"


def entry_name(version: ModelVersion) -> str:
    """One folder's name for a version's files; versions that share files share it."""
    return version.path.replace("/", "--")


def versions_by_entry() -> dict[str, ModelVersion]:
    """Who an entry's files belong to; of versions that share them, one."""
    rows = ModelVersion.objects.select_related("model").exclude(path="")
    return {entry_name(version): version for version in rows}


def manifest_of(version: ModelVersion) -> list[ManifestEntry]:
    """The version's manifest as values."""
    return [
        ManifestEntry(path=path, size_bytes=size, sha256=digest)
        for path, size, digest in version.files.values_list("path", "size_bytes", "sha256")
    ]


def hold(version: ModelVersion, report: Report = quiet) -> Held:
    """The folder of a version's verified files, brought here if need be; held until released.

    Raises Conflict for files of a local store that have rotted, and what fetching raises.
    """
    manifest = manifest_of(version)
    if store.is_local():
        folder = store.location(version.path)
        _refuse(version, damage(folder, manifest, report=report))
        return Held(folder, None)
    root().mkdir(parents=True, exist_ok=True)
    name = entry_name(version)
    folder = root() / name
    # First of all: from here on nobody evicts it.
    use = _locked(root() / (name + USE), fcntl.LOCK_SH)
    try:
        with _locked(root() / (name + LOCK), fcntl.LOCK_EX):
            if folder.is_dir() and damage(folder, manifest):
                # Rotted here, but whole in the store.
                _discard(folder)
            if not folder.is_dir():
                _bring(version, manifest, folder, report)
        os.utime(folder / STAMP)
    except BaseException:
        use.close()
        raise
    return Held(folder, use)


def renew(version: ModelVersion, report: Report = quiet) -> None:
    """Throw a version's files here away, and bring them from the store again."""
    with _locked(root() / (entry_name(version) + LOCK), fcntl.LOCK_EX):
        folder = root() / entry_name(version)
        if folder.is_dir():
            _discard(folder)
    hold(version, report).release()


def is_here(version: ModelVersion) -> bool:
    """Whether holding it needs no fetch."""
    return store.is_local() or (root() / entry_name(version)).is_dir()


def is_at_hand(version: ModelVersion) -> bool:
    """Whether holding it costs a few stats: nothing is to be fetched, and nothing that was touched to be hashed."""
    if not is_here(version):
        return False
    return is_untouched(place_of(version), manifest_of(version))


def place_of(version: ModelVersion) -> Path:
    """Where its files lie, or would."""
    return store.location(version.path) if store.is_local() else root() / entry_name(version)


def names() -> list[str]:
    """What is whole in the cache, by name; cheaper than :func:`entries`."""
    found = root().iterdir() if root().is_dir() else ()
    hidden = (LOCK, USE, PIN, BRINGING, REMOVED)
    return sorted(one.name for one in found if one.suffix not in hidden and one.is_dir())


def entries() -> list[Entry]:
    """What is in the cache, the least recently used first."""
    found = []
    for folder in sorted(root().glob("*")) if root().is_dir() else ():
        if folder.is_dir() and folder.suffix not in (BRINGING, REMOVED):
            with suppress(FileNotFoundError):
                found.append(_entry(folder))
    return sorted(found, key=lambda entry: entry.used_at)


def prune(keep_bytes: int = 0) -> list[Entry]:
    """Evict the least recently used until no more than ``keep_bytes`` are left; says what went.

    What is loaded, loading or pinned stays, and so may keep the cache above the bound. Leftovers of
    processes that died go, too.
    """
    _sweep()
    held = entries()
    total = sum(entry.size_bytes for entry in held)
    gone = []
    for entry in held:
        if total <= keep_bytes:
            break
        if not entry.pinned and _evict(entry):
            total -= entry.size_bytes
            gone.append(entry)
    return gone


def pin(version: ModelVersion, *, on: bool) -> None:
    """Keep a version's files here, or let them go when others need the room."""
    root().mkdir(parents=True, exist_ok=True)
    marker = root() / (entry_name(version) + PIN)
    if on:
        marker.touch()
    else:
        marker.unlink(missing_ok=True)


def _refuse(version: ModelVersion, found: list[Damage]) -> None:
    if found:
        raise Conflict(f"{version.served_id}: {in_words(found)}; repair the version before it is loaded.")


def _bring(version: ModelVersion, manifest: list[ManifestEntry], folder: Path, report: Report) -> None:
    room = _take_room(folder.name, sum(entry.size_bytes for entry in manifest))
    try:
        work = folder.with_name(folder.name + BRINGING)
        remotes = remote_files(store.storage(), version.path, manifest)
        Fetcher(work, report, bytes_per_s=settings.FETCH_BYTES_PER_S).fetch(remotes)
        for leftover in work.glob(".*"):
            leftover.unlink()
        write_stamp(work, (entry.path for entry in manifest))
        work.rename(folder)
    finally:
        room.unlink(missing_ok=True)


def _take_room(name: str, needed: int) -> Path:
    """Keep room for what is about to come, so that two who bring at once do not count the same room."""
    mine = root() / (name + ROOM)
    with _locked(root() / (ALL + LOCK), fcntl.LOCK_EX):
        others = [file for file in root().glob(f"*{ROOM}") if file != mine]
        _make_room(needed, sum(_room(file) for file in others))
        mine.write_text(str(needed))
    return mine


def _room(file: Path) -> int:
    """Bytes that another one keeps; none, if it died."""
    if not _is_locked(file.with_name(file.name.removesuffix(ROOM) + LOCK)):
        file.unlink(missing_ok=True)
        return 0
    with suppress(FileNotFoundError, ValueError):
        return int(file.read_text())
    return 0


def _make_room(needed: int, kept: int) -> None:
    bound = settings.CACHE_BYTES
    if not bound:
        free = shutil.disk_usage(root()).free
        if needed + kept > free:
            prune(max(0, sum(entry.size_bytes for entry in entries()) - (needed + kept - free)))
        return
    if needed > bound:
        raise Conflict(f"{needed} bytes do not fit the cache: MMSERVE_CACHE_BYTES is {bound}.")
    prune(max(0, bound - needed - kept))
    left = sum(entry.size_bytes for entry in entries()) + kept
    if left + needed > bound:
        raise Conflict(
            f"{needed} bytes do not fit the cache: {left} of {bound} bytes are loaded, loading or pinned "
            "(MMSERVE_CACHE_BYTES)."
        )


def _entry(folder: Path) -> Entry:
    use = folder.with_name(folder.name + USE)
    return Entry(
        name=folder.name,
        folder=folder,
        size_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        used_at=(folder / STAMP).stat().st_mtime,
        pinned=folder.with_name(folder.name + PIN).exists(),
        in_use=_is_locked(use),
    )


def _evict(entry: Entry) -> bool:
    """Out of sight by one rename, then for good; not what somebody holds."""
    try:
        use = _locked(entry.folder.with_name(entry.name + USE), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    with use:
        _discard(entry.folder)
    return True


def _discard(folder: Path) -> None:
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}{REMOVED}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sweep() -> None:
    """What a crash left: half-removed folders always, half-brought ones when nobody brings them."""
    for folder in root().glob(f"*{REMOVED}") if root().is_dir() else ():
        shutil.rmtree(folder, ignore_errors=True)
    for folder in root().glob(f"*{BRINGING}") if root().is_dir() else ():
        lock = folder.with_name(folder.name.removesuffix(BRINGING) + LOCK)
        with suppress(BlockingIOError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)


def _locked(file: Path, how: int) -> IO[str]:
    handle = file.open("a")
    try:
        fcntl.flock(handle, how)
    except BaseException:
        handle.close()
        raise
    return handle


def _is_locked(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB).close()
    except BlockingIOError:
        return True
    return False


@contextmanager
def holding(version: ModelVersion, report: Report = quiet) -> Iterator[Path]:
    """:func:`hold` as a block."""
    held = hold(version, report)
    try:
        yield held.folder
    finally:
        held.release()
