"""``file:///folder`` or ``file:///folder/model.gguf``, below the data folder or MMSERVE_SOURCE_ROOTS."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.conf import settings

from mmserve.errors import InvalidRequest
from registry.fetch import Chunks, RemoteFile
from registry.report import Report
from registry.sources import Wanted
from registry.sources.ranged import fetch_ranged
from registry.sources.selection import MAX_LISTED, select

CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """A folder with a checkpoint, or one GGUF file."""

    path: Path

    @classmethod
    def parse(cls, uri: str) -> LocalSource:
        """From a ``file://`` URI; refused outside the allowed roots, links followed."""
        parts = urlsplit(uri)
        if (
            parts.netloc
            or not parts.path.startswith("/")
            or parts.query
            or parts.fragment
            or "\0" in unquote(parts.path)
        ):
            raise InvalidRequest(
                f"source_uri: {uri[:200]!r} is not file:///absolute/path", param="source_uri"
            )
        return cls(path=_below_a_root(Path(unquote(parts.path))))

    def fetch(self, into: Path, report: Report, wanted: Wanted) -> Mapping[str, str]:
        """Copy the files that a checkpoint consists of."""
        return fetch_ranged(self._remotes(wanted), into, report, wanted)

    def _remotes(self, wanted: Wanted) -> list[RemoteFile]:
        if self.path.is_file():
            if self.path.suffix != ".gguf":
                raise InvalidRequest(f"{self.path} is a file, but not a .gguf", param="source_uri")
            return [_remote(self.path.name, self.path)]
        if not self.path.is_dir():
            raise InvalidRequest(f"There is nothing at {self.path}.", param="source_uri")
        # A link is followed, but only to a place that may be read.
        return [_remote(name, _below_a_root(self.path / name)) for name in select(self._names(), wanted)]

    def _names(self) -> Iterator[str]:
        """Files below the folder; linked folders are not walked. Bounded by selection's own bound."""
        seen = 0
        for folder, folders, files in os.walk(self.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in files:
                seen += 1
                if seen > MAX_LISTED + 1:
                    return
                yield (Path(folder) / name).relative_to(self.path).as_posix()


def _below_a_root(path: Path) -> Path:
    found = path.resolve()
    roots = [settings.DATA_DIR, *settings.SOURCE_ROOTS]
    if not any(found.is_relative_to(root) for root in roots):
        raise InvalidRequest(
            f"source_uri: {found} is below none of {', '.join(map(str, roots))}; "
            "MMSERVE_SOURCE_ROOTS adds folders",
            param="source_uri",
        )
    return found


def _remote(name: str, file: Path) -> RemoteFile:
    try:
        status = file.stat()
    except OSError as error:
        raise InvalidRequest(f"{name} cannot be read: {error.strerror}", param="source_uri") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"{name} is not a plain file", param="source_uri")
    return RemoteFile(
        path=name,
        size_bytes=status.st_size,
        validator=_validator(status),
        open=partial(_read, name, file, _validator(status)),
    )


def _validator(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def _read(name: str, file: Path, validator: str, start: int, end: int) -> Iterator[Chunks]:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidRequest(f"{name} cannot be read: {error.strerror}", param="source_uri") from error
    try:
        if _validator(os.fstat(fd)) != validator:
            raise InvalidRequest(f"{name} was changed while it was copied", param="source_uri")
        yield _chunks(fd, start, end)
    finally:
        os.close(fd)


def _chunks(fd: int, start: int, end: int) -> Chunks:
    buffer = memoryview(bytearray(min(CHUNK_BYTES, end - start)))
    while start < end:
        count = os.preadv(fd, [buffer[: end - start]], start)
        if not count:
            return
        start += count
        yield buffer[:count]
