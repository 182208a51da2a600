"""Where the compiled forms of engines lie, and how engine, node and builder speak of them there.

    <folder>/<key>/             a whole form: manifest, code, libraries; there only when whole (one rename)
    <folder>/<key>.wanted       an engine's wish (CompileJob, JSON), until there is a form or it failed
    <folder>/<key>.failed       why there is none; asked for again after a day
    <folder>/<key>.trying       the pids of engines that are taking it over: those that died of it are counted
    <folder>/<key>.building/    what the one builder makes
    <folder>/builder.lock       held by the one builder of this machine

A form holds no weights, so all versions with the same configuration share one. It is code, made by this machine and
run by its engines: the folder must be writable by nobody else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from inference.protocol import CompileJob

MANIFEST = "manifest.json"
CODE = "code"
LIBRARIES = "libraries"
ASK_AGAIN_AFTER_S = 24 * 3600.0
MAY_DIE = 2
HALF_MADE = ".building"


class Manifest(msgspec.Struct, kw_only=True):
    """What a form was made of, so that one that does not fit is refused before it runs."""

    module: str  # name of the compiled module in the model
    tensors: list[tuple[str, list[int], str]]  # its parameters and buffers: name, shape, dtype
    instructions: str  # the vector instructions that it was compiled for
    sha256: dict[str, str]  # by path in the form


class Shelf:
    """One form's place."""

    def __init__(self, folder: str | Path, key: str) -> None:
        self.form = Path(folder) / key
        self.building = self.form.with_name(f"{key}{HALF_MADE}")
        self._wanted = self.form.with_name(f"{key}.wanted")
        self._failed = self.form.with_name(f"{key}.failed")
        self._trying = self.form.with_name(f"{key}.trying")

    def has_form(self) -> bool:
        return (self.form / MANIFEST).exists()

    def is_coming(self) -> bool:
        return self._wanted.exists()

    def ask(self, job: CompileJob) -> None:
        """Wish for the form, once; not again for a day after it failed."""
        if self.has_form() or self.is_coming() or self.failure():
            return
        self._write(self._wanted, msgspec.json.encode(job))

    def forget_wish(self) -> None:
        self._wanted.unlink(missing_ok=True)

    def is_being_built(self) -> bool:
        return self.building.exists()

    def failure(self) -> str:
        """Why there is no form; empty if that is long ago, or nothing failed."""
        try:
            lately = time.time() - self._failed.stat().st_mtime < ASK_AGAIN_AFTER_S
            return self._failed.read_text() if lately else ""
        except FileNotFoundError:
            return ""

    def fail(self, why: str) -> None:
        """There is no form, or none any more."""
        self._write(self._failed, (why.strip() or "it ended without a word").encode(errors="replace"))
        self.forget_wish()
        self._trying.unlink(missing_ok=True)
        shutil.rmtree(self.form, ignore_errors=True)

    def keep(self, made: Path) -> None:
        """A whole form takes its place."""
        shutil.rmtree(self.form, ignore_errors=True)
        made.rename(self.form)
        self._failed.unlink(missing_ok=True)
        self.forget_wish()

    @contextmanager
    def trying(self) -> Iterator[None]:
        """A form that ends whole engines is not tried for ever: raises after MAY_DIE of them."""
        died = [pid for pid in self._tried() if not _lives(pid)]
        if len(died) >= MAY_DIE:
            raise RuntimeError(f"{len(died)} engines died while they took it over")
        with self._trying.open("a") as file:
            file.write(f"{os.getpid()}\n")
        yield
        self._trying.unlink(missing_ok=True)

    def _tried(self) -> list[int]:
        try:
            return [int(line) for line in self._trying.read_text().split()]
        except FileNotFoundError:
            return []

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)


def wishes(folder: Path) -> Iterator[CompileJob]:
    """What engines wish for, the oldest first."""
    for path in sorted(folder.glob("*.wanted"), key=lambda one: one.stat().st_mtime):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=CompileJob)
        except msgspec.MsgspecError:
            path.unlink()  # of another version of this program, or no wish at all


def digests(form: Path) -> dict[str, str]:
    """SHA-256 of every file of a form but its manifest."""
    files = [path for path in sorted(form.rglob("*")) if path.is_file() and path.name != MANIFEST]
    return {str(path.relative_to(form)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_manifest(form: Path) -> Manifest:
    """The manifest of a form whose files are as they were made; raises ValueError otherwise."""
    manifest = msgspec.json.decode((form / MANIFEST).read_bytes(), type=Manifest)
    for name, expected in manifest.sha256.items():
        if hashlib.sha256((form / name).read_bytes()).hexdigest() != expected:
            raise ValueError(f"{name} is not as it was made")
    return manifest


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
