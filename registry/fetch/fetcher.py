"""Fetches files into a folder: parallel ranged parts, resume, SHA-256 while they arrive.

Several threads write parts in place (pwrite); one thread hashes each file behind them, from the page cache,
so that no second pass over the disk is needed. Memory is one buffer a thread, whatever the size of a file.
The same idea as s5cmd's and aria2's segmented downloads, with the digest made on the way.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from mmserve.errors import Conflict, InvalidRequest, MmserveError, Unavailable
from registry.fetch.bandwidth import Bandwidth
from registry.fetch.journal import Journal
from registry.fetch.remote import FetchInterrupted, RemoteFile
from registry.report import FileProgress, Report

PART_BYTES = 16 * 2**20
HASH_BYTES = 2**20
THREADS = 4
TRIES = 5  # in a row without one byte more
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
REPORT_EVERY_S = 0.25
SPARE_BYTES = 64 * 2**20  # left free on the disk
SHOWN_FILES = 8  # in a report
JOURNAL = ".journal"


class _File:
    """One file under way."""

    def __init__(self, remote: RemoteFile, target: Path, part_bytes: int) -> None:
        self.remote = remote
        self.target = target
        self.partial = target.with_name(target.name + ".part")
        step = part_bytes if remote.ranges else max(1, remote.size_bytes)
        self.ranges = [
            (start, min(start + step, remote.size_bytes)) for start in range(0, remote.size_bytes, step)
        ]
        self.whole: set[int] = set()
        self.done_bytes = 0
        self.fd = -1

    def open(self) -> None:
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.ftruncate(self.fd, self.remote.size_bytes)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Fetcher:
    """Brings files into ``into``; what an earlier attempt left there is used."""

    def __init__(
        self,
        into: Path,
        report: Report,
        *,
        bytes_per_s: int = 0,
        part_bytes: int | None = None,
        threads: int = THREADS,
    ) -> None:
        self._into = into
        self._report = report
        self._bandwidth = Bandwidth(bytes_per_s)
        self._part_bytes = part_bytes or PART_BYTES
        self._threads = threads
        self._changed = threading.Condition()
        self._work: deque[tuple[_File, int]] = deque()
        self._problem: BaseException | None = None
        self._stop = threading.Event()
        self.moved_bytes = 0  # over the wire, this time

    def fetch(self, remotes: Sequence[RemoteFile]) -> dict[str, str]:
        """SHA-256 of each file by its path. All are whole when this returns; else it raises, naming the file.

        Raises InvalidRequest (wrong checksum, changed), Conflict (disk full) or Unavailable (given up).
        """
        self._into.mkdir(parents=True, exist_ok=True)
        journal = Journal(self._into / JOURNAL, self._part_bytes)
        files = [_File(remote, self._into / remote.path, self._part_bytes) for remote in remotes]
        try:
            digests = self._prepare(files, journal)
            self._check_space(files)
            self._run([file for file in files if file.remote.path not in digests], journal, digests)
        finally:
            for file in files:
                file.close()
            journal.close()
        return digests

    def _prepare(self, files: list[_File], journal: Journal) -> dict[str, str]:
        digests: dict[str, str] = {}
        for file in files:
            journal.begin(file.remote)
            path = file.remote.path
            known = journal.digest(path)
            if known is not None and _size(file.target) == file.remote.size_bytes:
                digests[path] = known
                file.done_bytes = file.remote.size_bytes
            elif _size(file.partial) == file.remote.size_bytes:
                file.whole = {part for part in journal.parts(path) if part < len(file.ranges)}
                file.done_bytes = sum(
                    end - start for start, end in (file.ranges[part] for part in file.whole)
                )
            else:
                file.partial.unlink(missing_ok=True)
                journal.discard(path)
                journal.begin(file.remote)
        return digests

    def _check_space(self, files: list[_File]) -> None:
        needed = sum(file.remote.size_bytes - file.done_bytes for file in files)
        free = shutil.disk_usage(self._into).free
        if needed and needed + SPARE_BYTES > free:
            raise Conflict(f"The disk is too full: {needed} bytes are to come, and {free} are free.")

    def _run(self, files: list[_File], journal: Journal, digests: dict[str, str]) -> None:
        # One file after another, so that files become whole early and few are open at once.
        self._work = deque(
            (file, part) for file in files for part in range(len(file.ranges)) if part not in file.whole
        )
        everything = files
        threads = [
            threading.Thread(target=self._guarded, args=(self._write_parts, journal), daemon=True)
            for _ in range(min(self._threads, len(self._work)))
        ]
        threads.append(
            threading.Thread(target=self._guarded, args=(self._hash, files, journal, digests), daemon=True)
        )
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                self._tell(everything)
                with self._changed:
                    if not self._stop.is_set():
                        self._changed.wait(REPORT_EVERY_S)
                if self._stop.is_set():
                    break
        finally:
            self._halt()
            for thread in threads:
                thread.join()
        if self._problem is not None:
            raise self._problem
        self._tell(everything)

    def _tell(self, files: list[_File]) -> None:
        done = sum(file.done_bytes for file in files)
        total = sum(file.remote.size_bytes for file in files)
        under_way = [file for file in files if 0 < file.done_bytes < file.remote.size_bytes]
        shown = [
            FileProgress(file.remote.path, file.done_bytes, file.remote.size_bytes)
            for file in under_way[:SHOWN_FILES]
        ]
        self._report(done, total, shown)

    def _halt(self) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()

    def _guarded(self, run: object, *args: object) -> None:
        try:
            run(*args)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - handed to the thread that called fetch
            with self._changed:
                self._problem = self._problem or error
            self._halt()

    def _write_parts(self, journal: Journal) -> None:
        while not self._stop.is_set():
            with self._changed:
                if not self._work:
                    return
                file, part = self._work.popleft()
                if file.fd < 0:
                    file.open()
            self._write_part(file, *file.ranges[part])
            if self._stop.is_set():
                return
            journal.finished_part(file.remote.path, part)
            with self._changed:
                file.whole.add(part)
                self._changed.notify_all()

    def _write_part(self, file: _File, start: int, end: int) -> None:
        """Until it is whole: a range that ends early is continued where it ended."""
        at, tries = start, 0
        while at < end and not self._stop.is_set():
            before = at
            try:
                with file.remote.open(at, end) as chunks:
                    for chunk in chunks:
                        at += self._write_chunk(file, chunk, at, end)
                        if self._stop.is_set():
                            return
                if at < end:
                    raise FetchInterrupted(f"it ended after {at - before} of {end - before} bytes")
            except FetchInterrupted as error:
                tries = 1 if at > before else tries + 1
                if tries >= TRIES:
                    raise Unavailable(f"{file.remote.path}: given up after {tries} tries: {error}") from error
                if not file.remote.ranges:
                    with self._changed:
                        file.done_bytes -= at - start
                    at = start
                self._stop.wait(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)))

    def _write_chunk(self, file: _File, chunk: bytes | memoryview, at: int, end: int) -> int:
        if len(chunk) > end - at:
            raise InvalidRequest(f"{file.remote.path}: the server sent more than was asked for")
        self._bandwidth.spend(len(chunk))
        view = memoryview(chunk)
        written = 0
        try:
            while written < len(view):
                written += os.pwrite(file.fd, view[written:], at + written)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Conflict(f"{file.remote.path}: no space is left on the disk") from error
            raise
        with self._changed:
            file.done_bytes += written
            self.moved_bytes += written
        return written

    def _hash(self, files: list[_File], journal: Journal, digests: dict[str, str]) -> None:
        buffer = memoryview(bytearray(HASH_BYTES))
        for file in files:
            digest = hashlib.sha256()
            for part, (start, end) in enumerate(file.ranges):
                with self._changed:
                    self._wait_for(file, part)
                    if self._stop.is_set():
                        return
                    if file.fd < 0:
                        file.open()
                while start < end:
                    count = os.preadv(file.fd, [buffer[: min(HASH_BYTES, end - start)]], start)
                    if not count:
                        raise Conflict(f"{file.remote.path}: what was written is not there")
                    digest.update(buffer[:count])
                    start += count
            if file.fd < 0:
                file.open()
            digests[file.remote.path] = self._finish(file, digest.hexdigest(), journal)

    def _wait_for(self, file: _File, part: int) -> None:
        self._changed.wait_for(lambda: part in file.whole or self._stop.is_set())

    def _finish(self, file: _File, found: str, journal: Journal) -> str:
        remote = file.remote
        if remote.sha256 is not None and found != remote.sha256:
            journal.discard(remote.path)
            file.partial.unlink()
            raise InvalidRequest(
                f"{remote.path} has the SHA-256 {found}, not {remote.sha256}: it was changed or damaged"
            )
        os.fdatasync(file.fd)
        file.close()
        file.partial.rename(file.target)
        journal.finished_file(remote.path, found)
        return found


def _size(file: Path) -> int | None:
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return None


def in_words(error: BaseException) -> str:
    """Why a fetch failed, for an operator: no trace, no secret."""
    return error.message if isinstance(error, MmserveError) else f"{type(error).__name__}: {error}"
