"""A store that is a folder."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from pathlib import Path

from mmserve.errors import Conflict, InvalidRequest

WORK = ".work"
REMOVED = ".removed"
ABANDONED_AFTER_S = 3600.0
# From linux/fcntl.h and linux/fs.h.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def below(root: Path, path: str) -> Path:
    """The place of a version's files; never outside the root."""
    base = root.resolve()
    found = (base / path).resolve()
    if not path or found == base or not found.is_relative_to(base):
        raise InvalidRequest(f"{path!r} is not a folder below the store", param="path")
    return found


def publish(root: Path, work: Path, path: str) -> None:
    """Move finished files to their place by one atomic rename; what was there is replaced.

    An engine that has the old files open keeps reading them: their inodes live until it closes them.
    """
    target = below(root, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if target.exists():
            _exchange(work, target)
            _remove(root, work)
        else:
            work.rename(target)
    except OSError as error:
        raise Conflict(f"{target} could not be published: {error}") from error


def remove(root: Path, path: str) -> None:
    """Delete a version's files: out of sight by one rename, then for good."""
    target = below(root, path)
    if not target.exists():
        return
    _remove(root, target)


def sweep(root: Path) -> None:
    """Finish removals whose process died in the middle of them."""
    for doomed in (root / WORK).glob(f"*{REMOVED}"):
        if time.time() - doomed.stat().st_ctime > ABANDONED_AFTER_S:
            shutil.rmtree(doomed, ignore_errors=True)


def _remove(root: Path, folder: Path) -> None:
    doomed = root / WORK / f"{folder.name}.{os.getpid()}{REMOVED}"
    doomed.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step, so that neither name is without its files for a moment (renameat2(2))."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap and swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return
    # A C library or a file system that cannot: two steps, and back if the second fails.
    aside = one.with_name(f"{one.name}.{os.getpid()}.aside")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
