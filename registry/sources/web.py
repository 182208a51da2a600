"""``https://host/path/model.gguf[#sha256=…]``, or an archive (.tar, .tar.gz, .tgz, .zip) with a checkpoint.

Hosts must be listed in MMSERVE_SOURCE_HOSTS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from django.conf import settings

from mmserve.errors import InvalidRequest
from registry.report import Report
from registry.sources import Wanted
from registry.sources.archive import ARCHIVES, unpack
from registry.sources.hosts import check_url
from registry.sources.http import WebFiles
from registry.sources.ranged import fetch_ranged

SHA256 = re.compile(r"sha256=([0-9a-f]{64})")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
SETTING = "MMSERVE_SOURCE_HOSTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSource:
    """One file of a web server."""

    url: str
    name: str
    sha256: str | None

    @classmethod
    def parse(cls, uri: str) -> WebSource:
        """From an ``https://`` URI (``http://`` only for hosts that are listed with it)."""
        url, _, fragment = uri.partition("#")
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        if not NAME.fullmatch(name) or not name.endswith((".gguf", *ARCHIVES)):
            raise InvalidRequest(
                f"source_uri: {name[:100]!r} is neither a .gguf file nor an archive ({', '.join(ARCHIVES)})",
                param="source_uri",
            )
        digest = SHA256.fullmatch(fragment)
        if fragment and digest is None:
            raise InvalidRequest(
                f"source_uri: {fragment[:100]!r} is not sha256=<64 hex digits>", param="source_uri"
            )
        check_url(url, settings.SOURCE_HOSTS, SETTING)
        return cls(url=url, name=name, sha256=digest[1] if digest else None)

    def fetch(self, into: Path, report: Report, wanted: Wanted) -> Mapping[str, str]:
        """The file, or what the archive holds."""
        packed = into.with_name(f"{into.name}-packed")
        with WebFiles(settings.SOURCE_HOSTS, SETTING) as web:
            remote = web.remote_file(self.url, self.name, self.sha256)
            if self.name.endswith(".gguf"):
                return fetch_ranged([remote], into, report, wanted)
            fetch_ranged([remote], packed, report, Wanted())
        unpack(packed / self.name, into, report, wanted)
        return {}
