"""The manifest of a version: each file's path below its folder, size and SHA-256."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from mmserve.errors import InvalidRequest
from registry.report import Report

CHUNK_BYTES = 4 * 2**20
# What a row keeps of a path, and what a file system takes of a name, with the marks that a fetch adds.
MAX_PATH_CHARS = 500
MAX_NAME_BYTES = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One file of a version."""

    path: str
    size_bytes: int
    sha256: str


def check_path(path: str) -> str:
    """A relative path that stays below its root; InvalidRequest otherwise."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path:
        raise InvalidRequest(f"{path[:200]!r} leaves the version's folder", param="path")
    # As a file system would spell it: "a//b" and "./a/b" are other names of "a/b".
    if "/".join(parts) != path or not path.isprintable() or len(path) > MAX_PATH_CHARS:
        raise InvalidRequest(f"{path[:200]!r} is no plain path of a file", param="path")
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise InvalidRequest(f"{path[:200]!r} is too long for a file's name", param="path")
    return path


def check_paths(paths: list[str]) -> list[str]:
    """Paths of one version: each below its root, and no two that a file system could take for one another."""
    seen: dict[str, str] = {}
    for path in paths:
        check_path(path)
        same = unicodedata.normalize("NFC", path).casefold()
        if same in seen:
            raise InvalidRequest(f"{seen[same]!r} and {path!r} differ only in case or spelling", param="path")
        seen[same] = path
    for same, path in seen.items():
        above = next((str(folder) for folder in PurePosixPath(same).parents if str(folder) in seen), None)
        if above is not None:
            raise InvalidRequest(f"{seen[above]!r} is a file, and {path!r} is in it", param="path")
    return paths


def read_manifest(
    folder: Path, report: Report, known: Mapping[str, str] | None = None
) -> list[ManifestEntry]:
    """Every file below a folder with its digest; a link is refused, because it may lead out of it.

    ``known`` has SHA-256 by path of files that were hashed when they were written: they are not read again.
    """
    found = sorted(folder.rglob("*"))
    for entry in found:
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise InvalidRequest(f"{entry.relative_to(folder)} is a link; a version's files are plain files")
    # Hidden files are this program's own: the stamp, the journal.
    files = {entry.relative_to(folder).as_posix(): entry for entry in found if entry.is_file()}
    files = {path: file for path, file in files.items() if not file.name.startswith(".")}
    check_paths(list(files))
    sizes = {path: file.stat().st_size for path, file in files.items()}
    digests = dict(known or {})
    to_read = {path: file for path, file in files.items() if path not in digests}
    done, total = 0, sum(sizes[path] for path in to_read)
    for path, file in to_read.items():
        digests[path] = hash_file(file, partial(_report_from, report, done, total))
        done += sizes[path]
    return [ManifestEntry(path=path, size_bytes=sizes[path], sha256=digests[path]) for path in files]


def _report_from(report: Report, before: int, total: int, count: int) -> None:
    report(before + count, total)


def hash_file(file: Path, report: Callable[[int], object] = lambda count: None) -> str:
    """SHA-256 of a file; ``report`` gets the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as reader:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()
