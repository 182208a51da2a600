"""Where versions' files live, through Django's STORAGES: a folder, or S3. What is published is whole.

In a folder a version is published by one rename and served from where it lies. In S3 it is published by its
row: objects are uploaded under a name that nothing refers to yet, and a node brings them into its cache.
"""

from __future__ import annotations

import os
import shutil
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.core.files.storage import FileSystemStorage, Storage, storages

from mmserve.errors import InvalidRequest
from registry.report import Report, quiet
from registry.store import local, s3
from registry.store.local import WORK
from registry.store_url import storage_params

__all__ = [
    "WORK",
    "clear_workspace",
    "is_local",
    "location",
    "publish",
    "remove",
    "replace",
    "root",
    "storage",
    "sweep",
    "work_root",
    "workspace",
]


def storage() -> Storage:
    """The backend of MMSERVE_STORAGE_URL."""
    return _made(settings.STORAGE_URL, settings.S3_ENDPOINT)


@lru_cache(maxsize=8)
def _made(url: str, endpoint: str) -> Storage:
    if not url.startswith(("file:///", "s3://")):
        raise InvalidRequest(f"MMSERVE_STORAGE_URL must be file:///folder or s3://bucket/prefix, not {url!r}")
    return storages.create_storage(storage_params(url, endpoint))


def is_local() -> bool:
    """Whether files are served from where they are stored."""
    return isinstance(storage(), FileSystemStorage)


def root() -> Path:
    """The store's folder; only for a local store."""
    found = storage()
    if not isinstance(found, FileSystemStorage):
        raise InvalidRequest(f"the store is {settings.STORAGE_URL}, not a folder")
    return Path(found.base_location)


def work_root() -> Path:
    """Where files are made ready: on a local store's own file system, so that publishing is one rename."""
    return (root() if is_local() else settings.CACHE_DIR) / WORK


def workspace(name: str) -> Path:
    """A folder to work in; what an earlier attempt left there is still in it."""
    folder = work_root() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def location(path: str) -> Path:
    """The folder of a published version in a local store, as its row's ``path`` names it."""
    return local.below(root(), path)


def publish(work: Path, path: str, report: Report = quiet) -> None:
    """Put finished files where the store keeps them; nobody ever sees half of them."""
    if is_local():
        local.publish(root(), work, path)
    else:
        s3.publish(storage(), work, path, report)


def remove(path: str) -> None:
    """Delete a version's files."""
    if is_local():
        local.remove(root(), path)
    else:
        s3.remove(storage(), path)


def replace(work: Path, path: str, damaged: list[str]) -> None:
    """Put repaired files in the place of those that are damaged; the others stay as they are, or as they were."""
    if is_local():
        local.publish(root(), work, path)
    else:
        s3.upload(storage(), work, path, damaged)


def sweep() -> None:
    """Finish what processes that died had begun to remove."""
    local.sweep(work_root().parent)


def clear_workspace(name: str) -> None:
    """What is left of a work that ended well, or that nobody will go on with."""
    folder = work_root() / name
    if not folder.exists():
        return
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}{local.REMOVED}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
