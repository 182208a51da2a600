"""``file:///folder`` or ``file:///folder/model.gguf``, below the data folder or MMSERVE_SOURCE_ROOTS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.conf import settings

from mmserve.errors import InvalidRequest
from registry.sources import Report

# Weights as data. Code (.py) and pickles (.bin, .pt) are never taken.
SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken"})
CHUNK_BYTES = 4 * 2**20


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
            or "\0" in parts.path
        ):
            raise InvalidRequest(f"source_uri: {uri!r} is not file:///absolute/path", param="source_uri")
        path = Path(unquote(parts.path)).resolve()
        roots = [settings.DATA_DIR, *settings.SOURCE_ROOTS]
        if not any(path.is_relative_to(root) for root in roots):
            raise InvalidRequest(
                f"source_uri: {path} is below none of {', '.join(map(str, roots))}; "
                "MMSERVE_SOURCE_ROOTS adds folders",
                param="source_uri",
            )
        return cls(path=path)

    def fetch(self, into: Path, report: Report) -> None:
        """Copy the files that a checkpoint consists of."""
        files = self._files()
        total = sum(file.stat().st_size for file in files.values())
        done = 0
        for name, file in files.items():
            with file.open("rb") as reader, (into / name).open("wb") as writer:
                while chunk := reader.read(CHUNK_BYTES):
                    writer.write(chunk)
                    done += len(chunk)
                    report(done, total)

    def _files(self) -> dict[str, Path]:
        """What to copy, by name."""
        if self.path.is_file():
            if self.path.suffix != ".gguf":
                raise InvalidRequest(f"{self.path} is a file, but not a .gguf", param="source_uri")
            return {self.path.name: self.path}
        if not self.path.is_dir():
            raise InvalidRequest(f"There is nothing at {self.path}.", param="source_uri")
        # A link is followed, but only to a place that may be read.
        found = {
            entry.name: LocalSource.parse(entry.resolve().as_uri()).path
            for entry in sorted(self.path.iterdir())
            if entry.suffix in SUFFIXES and entry.is_file()
        }
        if not any(name.endswith(".safetensors") for name in found):
            raise InvalidRequest(f"There is no .safetensors file in {self.path}.", param="source_uri")
        return found
