"""Where versions' files live: a local folder below MMSERVE_STORAGE_URL. What is published is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.conf import settings

from mmserve.errors import Conflict, InvalidRequest

WORK = ".work"


def root() -> Path:
    """The store's folder."""
    url = urlsplit(settings.STORAGE_URL)
    if url.scheme != "file":
        raise InvalidRequest(f"MMSERVE_STORAGE_URL must be file:///folder, not {settings.STORAGE_URL!r}")
    return Path(unquote(url.path))


def location(path: str) -> Path:
    """The folder of a published version, as its row's ``path`` names it; never outside the root."""
    base = root().resolve()
    found = (base / path).resolve()
    if not path or found == base or not found.is_relative_to(base):
        raise InvalidRequest(f"{path!r} is not a folder below the store", param="path")
    return found


def workspace(name: str) -> Path:
    """An empty folder on the store's own file system, so that publishing is one rename."""
    folder = root() / WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(work: Path, path: str) -> Path:
    """Move finished files to their place by one atomic rename; what a dead import left there is replaced."""
    target = location(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        leftover = root() / WORK / f"leftover-{target.name}-{os.getpid()}"
        target.rename(leftover)
        shutil.rmtree(leftover)
    try:
        work.rename(target)
    except OSError as error:
        raise Conflict(f"{target} could not be published: {error}") from error
    return target


def remove(path: str) -> None:
    """Delete a version's files: out of sight by one rename, then for good."""
    target = location(path)
    if not target.exists():
        return
    doomed = root() / WORK / f"removed-{target.name}-{os.getpid()}"
    doomed.parent.mkdir(parents=True, exist_ok=True)
    target.rename(doomed)
    shutil.rmtree(doomed)
