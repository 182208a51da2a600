"""What of a fetch is already here: an append-only file beside it, so that a kill -9 costs nothing whole."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from registry.fetch.remote import RemoteFile

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """Finished parts and finished files, by path.

    A killed process leaves its writes in the page cache; a dead machine does not: parts noted under another
    boot are not trusted. A file that was finished was synced before it was noted.
    """

    def __init__(self, file: Path, part_bytes: int) -> None:
        self._file = file
        self._part_bytes = part_bytes
        self._parts: dict[str, set[int]] = {}
        self._digests: dict[str, str] = {}
        self._identities: dict[str, list[Any]] = {}
        self._boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        self._read()
        self._writer: TextIO = file.open("a", buffering=1)
        # A line that the kill cut in two must not swallow the next one.
        self._writer.write("\n")

    def _read(self) -> None:
        boot = ""
        with suppress(FileNotFoundError):
            for line in self._file.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line) if line else {}
                except ValueError:
                    continue
                match entry:
                    case {"boot": str(found)}:
                        boot = found
                    case {"path": str(path), "identity": list(identity)}:
                        self._forget(path)
                        self._identities[path] = identity
                    case {"path": str(path), "part": int(part)} if boot == self._boot:
                        self._parts.setdefault(path, set()).add(part)
                    case {"path": str(path), "sha256": str(digest)}:
                        self._digests[path] = digest

    def begin(self, remote: RemoteFile) -> None:
        """Before its first part; whatever was kept of another state of the file is forgotten."""
        identity = [remote.size_bytes, remote.validator, remote.sha256, self._part_bytes]
        # Of a file that nothing tells apart from another of its size, nothing is kept.
        nameless = not remote.validator and remote.sha256 is None
        if nameless or self._identities.get(remote.path) != identity:
            self._forget(remote.path)
            self._identities[remote.path] = identity
            self._write({"path": remote.path, "identity": identity})
        self._write({"boot": self._boot})

    def parts(self, path: str) -> set[int]:
        """Numbers of the parts that are whole."""
        return self._parts.get(path, set())

    def digest(self, path: str) -> str | None:
        """SHA-256 of a file that is whole and was verified."""
        return self._digests.get(path)

    def finished_part(self, path: str, part: int) -> None:
        self._write({"path": path, "part": part})

    def finished_file(self, path: str, digest: str) -> None:
        self._digests[path] = digest
        self._write({"path": path, "sha256": digest})

    def discard(self, path: str) -> None:
        """Forget a file: what arrived is not what it should be."""
        self._forget(path)
        self._write({"path": path, "identity": []})

    def _forget(self, path: str) -> None:
        self._parts.pop(path, None)
        self._digests.pop(path, None)
        self._identities.pop(path, None)

    def _write(self, entry: dict[str, Any]) -> None:
        # One write a line: lines of several threads do not mix.
        self._writer.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        """The file stays for the next attempt."""
        self._writer.close()
