"""Archives from elsewhere: only plain files that a version is made of, within bounds that are kept while unpacking."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from mmserve.errors import Conflict, InvalidRequest
from registry.report import Report
from registry.sources import Wanted
from registry.sources.selection import MAX_LISTED, select

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
# Weights hardly compress: what grows more is no checkpoint.
MAX_RATIO = 20
CHUNK_BYTES = 2**20
SPARE_BYTES = 64 * 2**20
# A tar's extended header and a zip's directory are read whole: 20,000 files need less than this.
MAX_READ_BYTES = 8 * 2**20

Member = tuple[int, Callable[[], IO[bytes]]]  # size, how to read it
BROKEN = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


class _Bounded:
    """An opened archive of which nothing large is read at once, whatever a header in it claims."""

    def __init__(self, file: IO[bytes], archive: Path) -> None:
        self._file, self._archive = file, archive

    def read(self, count: int = -1) -> bytes:
        found = self._file.read(count if 0 <= count <= MAX_READ_BYTES else MAX_READ_BYTES + 1)
        if len(found) > MAX_READ_BYTES:
            raise InvalidRequest(
                f"{self._archive.name}: a header in it is larger than {MAX_READ_BYTES} bytes"
            )
        _refuse_growth(self._archive, self._file.tell())
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


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
    _refuse_growth(archive, total)
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


def _refuse_growth(archive: Path, total: int) -> None:
    size = archive.stat().st_size
    if total > MAX_RATIO * size + 2**20:
        raise InvalidRequest(
            f"{archive.name} would grow from {size} to {total} bytes: more than {MAX_RATIO} times"
        )


@contextmanager
def _members(archive: Path) -> Iterator[dict[str, Member]]:
    """Plain files by path; links, devices and folders are left out."""
    with archive.open("rb") as file:
        if archive.suffix == ".zip":
            yield _zipped(file, archive)
        elif archive.suffix == ".tar":
            yield _tarred(file, archive)
        else:
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield _tarred(cast(IO[bytes], unzipped), archive)


def _zipped(file: IO[bytes], archive: Path) -> dict[str, Member]:
    found: dict[str, Member] = {}
    packed = zipfile.ZipFile(cast(IO[bytes], _Bounded(file, archive)))
    for entry in packed.infolist():
        kind = entry.external_attr >> 28
        if not entry.is_dir() and kind in (0, 8):
            _add(found, entry.filename, entry.file_size, partial(packed.open, entry))
    return found


def _tarred(file: IO[bytes], archive: Path) -> dict[str, Member]:
    found: dict[str, Member] = {}
    # Open for as long as its members are read: the file below it is closed by who opened it.
    tar = tarfile.TarFile(fileobj=cast(IO[bytes], _Bounded(file, archive)))
    for number, member in enumerate(tar):
        # Before what it holds is unpacked to get at the next one.
        _refuse_growth(archive, member.offset_data + member.size)
        _refuse_many(number)
        if member.isreg():
            _add(found, member.name, member.size, partial(_reader, tar, member))
    return found


def _add(found: dict[str, Member], path: str, size: int, opened: Callable[[], IO[bytes]]) -> None:
    name = path.removeprefix("./")
    if name in found:
        raise InvalidRequest(f"the archive holds {name[:200]!r} twice")
    _refuse_many(len(found))
    found[name] = (size, opened)


def _refuse_many(count: int) -> None:
    if count >= MAX_LISTED:
        raise InvalidRequest(f"the archive holds more than {MAX_LISTED} files")


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    reader = tar.extractfile(member)
    assert reader is not None
    return reader


def _common_folder(members: dict[str, Member]) -> str:
    tops = {PurePosixPath(path).parts[0] for path in members if PurePosixPath(path).parts}
    if len(tops) == 1 and all("/" in path for path in members):
        return f"{tops.pop()}/"
    return ""
