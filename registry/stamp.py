"""Finds files that rot: size and time of each are kept beside it; what differs is hashed again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from registry.manifest import ManifestEntry, hash_file

STAMP = ".stamp.json"


class Damage(NamedTuple):
    """One file that is not what the manifest says."""

    path: str
    words: str


def in_words(found: Sequence[Damage]) -> str:
    """The first of several, and how many more there are."""
    path, words = found[0]
    return f"{path} {words}" + (f" ({len(found) - 1} more files are damaged)" if len(found) > 1 else "")


def write_stamp(folder: Path, paths: Iterable[str]) -> None:
    """Note size and modification time of files that were just verified; replaced by one rename."""
    stamp = {}
    for path in paths:
        status = (folder / path).stat()
        stamp[path] = [status.st_size, status.st_mtime_ns]
    partial = folder / f"{STAMP}.{os.getpid()}"
    partial.write_text(json.dumps(stamp))
    partial.rename(folder / STAMP)


def damage(
    folder: Path,
    manifest: Sequence[ManifestEntry],
    *,
    full: bool = False,
    report: Callable[[int, int], object] = lambda done, total: None,
) -> list[Damage]:
    """What is wrong with a version's files; empty: nothing.

    Without ``full`` a file whose size and time are as noted is taken as whole. A file that was touched, but has
    its digest still, is noted anew.
    """
    noted = {} if full else _read_stamp(folder)
    found: list[Damage] = []
    done, total = 0, sum(entry.size_bytes for entry in manifest)
    anew = False
    for entry in manifest:
        file = folder / entry.path
        try:
            status = file.lstat()
            if status.st_size != entry.size_bytes:
                found.append(Damage(entry.path, f"has {status.st_size} bytes, not {entry.size_bytes}"))
            elif noted.get(entry.path) != [status.st_size, status.st_mtime_ns]:
                anew = True
                digest = hash_file(file)
                if digest != entry.sha256:
                    found.append(Damage(entry.path, f"has the SHA-256 {digest}, not {entry.sha256}"))
        except FileNotFoundError:
            found.append(Damage(entry.path, "is missing"))
        except OSError as error:
            found.append(Damage(entry.path, f"cannot be read: {error.strerror}"))
        done += entry.size_bytes
        report(done, total)
    if anew and not found:
        write_stamp(folder, (entry.path for entry in manifest))
    return found


def is_untouched(folder: Path, manifest: Sequence[ManifestEntry]) -> bool:
    """Whether :func:`damage` would answer at once: no file is to be hashed."""
    noted = _read_stamp(folder)
    for entry in manifest:
        with suppress(OSError):
            status = (folder / entry.path).lstat()
            if status.st_size == entry.size_bytes and noted.get(entry.path) != [
                status.st_size,
                status.st_mtime_ns,
            ]:
                return False
    return True


def _read_stamp(folder: Path) -> dict[str, list[int]]:
    try:
        found = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
