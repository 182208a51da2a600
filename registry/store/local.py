"""A store that is a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mmserve.errors import Conflict, InvalidRequest

WORK = ".work"


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
    if target.exists():
        leftover = root / WORK / f"leftover-{target.name}-{os.getpid()}"
        target.rename(leftover)
        shutil.rmtree(leftover)
    try:
        work.rename(target)
    except OSError as error:
        raise Conflict(f"{target} could not be published: {error}") from error


def remove(root: Path, path: str) -> None:
    """Delete a version's files: out of sight by one rename, then for good."""
    target = below(root, path)
    if not target.exists():
        return
    doomed = root / WORK / f"removed-{target.name}-{os.getpid()}"
    doomed.parent.mkdir(parents=True, exist_ok=True)
    target.rename(doomed)
    shutil.rmtree(doomed)
