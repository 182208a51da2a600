"""The manifest of a version: each file's path below its folder, size and SHA-256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmserve.errors import InvalidRequest
from registry.sources import Report

CHUNK_BYTES = 4 * 2**20


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
        raise InvalidRequest(f"{path!r} leaves the version's folder", param="path")
    return path


def read_manifest(folder: Path, report: Report) -> list[ManifestEntry]:
    """Hash every file below a folder; a link is refused, because it may lead out of it."""
    found = sorted(folder.rglob("*"))
    for entry in found:
        if entry.is_symlink():
            raise InvalidRequest(f"{entry.relative_to(folder)} is a link; a version's files are plain files")
    files = [entry for entry in found if entry.is_file()]
    total = sum(file.stat().st_size for file in files)
    done = 0
    manifest = []
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as reader:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                report(done, total)
        path = check_path(file.relative_to(folder).as_posix())
        manifest.append(ManifestEntry(path=path, size_bytes=file.stat().st_size, sha256=digest.hexdigest()))
    return manifest
