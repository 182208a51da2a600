"""Where a version's files come from, by the scheme of its source URI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

from mmserve.errors import InvalidRequest
from registry.report import Report

SCHEMES: dict[str, str] = {
    "file": "registry.sources.local:LocalSource",
    "s3": "registry.sources.s3:S3Source",
    "hf": "registry.sources.huggingface:HuggingFaceSource",
    "https": "registry.sources.web:WebSource",
    "http": "registry.sources.web:WebSource",
    "pypi": "registry.sources.pypi:PypiSource",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What may be taken of a source, and what is known of it beforehand."""

    allow_pickle: bool = False
    trust_remote_code: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict)  # by path


class Source(Protocol):
    """One place that files come from, its URI already checked."""

    def fetch(self, into: Path, report: Report, wanted: Wanted) -> Mapping[str, str]:
        """Bring the files into a folder; what an earlier attempt left there is used.

        Returns the SHA-256 of each file that was hashed on the way, by its path.
        """


def source_for(uri: str) -> Source:
    """The source that a URI names; InvalidRequest says what is wrong with it."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in SCHEMES:
        raise InvalidRequest(
            f"source_uri: {uri[:200]!r} is none of file:///folder, s3://bucket/prefix, "
            "hf://org/name@revision, https://host/file.gguf and pypi://package==version#file.gguf",
            param="source_uri",
        )
    module, _, name = SCHEMES[scheme].partition(":")
    parse: Callable[[str], Source] = getattr(import_module(module), name).parse
    return parse(uri)


def check(uri: str) -> None:
    """Refuse a URI that no source can read."""
    source_for(uri)
