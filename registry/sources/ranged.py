"""What sources share whose files are read in ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from django.conf import settings

from mmserve.errors import InvalidRequest
from registry.fetch import Fetcher, RemoteFile
from registry.report import Report
from registry.sources import Wanted


def fetch_ranged(
    remotes: Sequence[RemoteFile], into: Path, report: Report, wanted: Wanted
) -> Mapping[str, str]:
    """Fetch into a folder; a file whose digest is known beforehand must have it."""
    found = {remote.path for remote in remotes}
    # What is converted here has other files in the end than it has in its source.
    converted = any(path.endswith(".gguf") for path in found)
    missing = [] if converted else sorted(set(wanted.sha256) - found)
    if missing:
        raise InvalidRequest(f"{missing[0]} is in the manifest, but not in the source", param="source_uri")
    expected = [replace(remote, sha256=wanted.sha256.get(remote.path, remote.sha256)) for remote in remotes]
    _drop_what_is_not_wanted(into, found)
    return Fetcher(into, report, bytes_per_s=settings.FETCH_BYTES_PER_S).fetch(expected)


def _drop_what_is_not_wanted(into: Path, wanted: set[str]) -> None:
    """An earlier attempt may have found other files there."""
    for entry in into.rglob("*") if into.is_dir() else ():
        name = entry.relative_to(into).as_posix().removesuffix(".part")
        if entry.is_file() and name not in wanted and not entry.name.startswith("."):
            entry.unlink()
