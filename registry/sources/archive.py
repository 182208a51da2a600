"""Archives from elsewhere: only plain files that a version is made of, within bounds that are kept while unpacking."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from mmserve.errors import Conflict, InvalidRequest
from registry.report import Report
from registry.sources import Wanted
from registry.sources.selection import MAX_LISTED, select

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
# Weights hardly compress: what grows more is no checkpoint.
MAX_RATIO = 20
CHUNK_BYTES = 2**20
SPARE_BYTES = 64 * 2**20

Member = tuple[int, Callable[[], IO[bytes]]]  # size, how to read it
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def unpack(archive: Path, into: Path, report: Report, wanted: Wanted) -> None:
    """Write what a version is made of into a folder; a single folder around everything is left out."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    try:
        with _members(archive) as members:
            _write(archive, members, into, report, wanted)
    except BROKEN as error:
        raise InvalidRequest(f"{archive.name} is damaged: {error}") from error


def _write(archive: Path, members: dict[str, Member], into: Path, report: Report, wanted: Wanted) -> None:
    folder = _common_folder(members)
    chosen = select((path.removeprefix(folder) for path in members), wanted)
    total = sum(members[folder + path][0] for path in chosen)
    if total > MAX_RATIO * archive.stat().st_size + 2**20:
        raise InvalidRequest(
            f"{archive.name} would grow from {archive.stat().st_size} to {total} bytes: more than {MAX_RATIO} times"
        )
    if total + SPARE_BYTES > shutil.disk_usage(into).free:
        raise Conflict(f"The disk is too full for the {total} bytes that {archive.name} holds.")
    done = 0
    for path in chosen:
        size, opened = members[folder + path]
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened() as reader, target.open("xb") as writer:
            # Never more than the header promised, whatever the stream would give.
            left = size
            while left and (chunk := reader.read(min(CHUNK_BYTES, left))):
                writer.write(chunk)
                left -= len(chunk)
                done += len(chunk)
                report(done, total)
        if left:
            raise InvalidRequest(f"{archive.name}: {path} is cut short")


@contextmanager
def _members(archive: Path) -> Iterator[dict[str, Member]]:
    """Plain files by path; links, devices and folders are left out."""
    found: dict[str, Member] = {}
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                kind = entry.external_attr >> 28
                if not entry.is_dir() and kind in (0, 8):
                    _add(found, entry.filename, entry.file_size, partial(packed.open, entry))
            yield found
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            if member.isreg():
                _add(found, member.name, member.size, partial(_reader, tar, member))
        yield found


def _add(found: dict[str, Member], path: str, size: int, opened: Callable[[], IO[bytes]]) -> None:
    name = path.removeprefix("./")
    if name in found:
        raise InvalidRequest(f"the archive holds {name[:200]!r} twice")
    if len(found) >= MAX_LISTED:
        raise InvalidRequest(f"the archive holds more than {MAX_LISTED} files")
    found[name] = (size, opened)


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    reader = tar.extractfile(member)
    assert reader is not None
    return reader


def _common_folder(members: dict[str, Member]) -> str:
    tops = {PurePosixPath(path).parts[0] for path in members if path}
    if len(tops) == 1 and all("/" in path for path in members):
        return f"{tops.pop()}/"
    return ""
