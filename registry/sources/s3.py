"""``s3://bucket/prefix[?endpoint=https://host:port]``: a folder of objects, or one GGUF object.

Keys come from the environment as boto3 reads it (AWS_ACCESS_KEY_ID, a profile, a pod's role); they are never
stored and never in a message. An endpoint other than AWS's own must be listed in MMSERVE_S3_ENDPOINTS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from django.conf import settings

from mmserve.errors import InvalidRequest
from registry.fetch import RemoteFile
from registry.report import Report
from registry.s3 import client_for, said_in_words
from registry.s3 import remote_file as s3_remote
from registry.sources import Wanted
from registry.sources.hosts import check_url
from registry.sources.ranged import fetch_ranged
from registry.sources.selection import select

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Source:
    """Objects below a prefix."""

    bucket: str
    prefix: str
    endpoint: str | None

    @classmethod
    def parse(cls, uri: str) -> S3Source:
        """From an ``s3://`` URI."""
        parts = urlsplit(uri)
        query = parse_qs(parts.query, strict_parsing=False, keep_blank_values=True)
        if parts.fragment or set(query) - {"endpoint"} or len(query.get("endpoint", [])) > 1:
            raise InvalidRequest(
                f"source_uri: {uri[:200]!r} is not s3://bucket/prefix[?endpoint=https://…]",
                param="source_uri",
            )
        if not BUCKET.fullmatch(parts.netloc):
            raise InvalidRequest(f"source_uri: {parts.netloc!r} is no bucket's name", param="source_uri")
        endpoint = query["endpoint"][0] if "endpoint" in query else settings.S3_ENDPOINT or None
        if endpoint is not None:
            allowed = [*settings.S3_ENDPOINTS, *([settings.S3_ENDPOINT] if settings.S3_ENDPOINT else [])]
            check_url(endpoint, allowed, "MMSERVE_S3_ENDPOINTS")
        return cls(bucket=parts.netloc, prefix=unquote(parts.path).strip("/"), endpoint=endpoint)

    def fetch(self, into: Path, report: Report, wanted: Wanted) -> Mapping[str, str]:
        """Objects that make a version, in parallel ranges."""
        client = client_for(self.endpoint)
        with said_in_words(self.bucket):
            remotes = self._remotes(client, wanted)
        return fetch_ranged(remotes, into, report, wanted)

    def _remotes(self, client: Any, wanted: Wanted) -> list[RemoteFile]:
        if self.prefix.endswith(".gguf"):
            return [s3_remote(client, self.bucket, self.prefix, self.prefix.rpartition("/")[2])]
        folder = f"{self.prefix}/" if self.prefix else ""
        found: dict[str, Any] = {}

        def listed() -> Iterator[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
            for page in pages:
                for entry in page.get("Contents", []):
                    name = entry["Key"].removeprefix(folder)
                    if name and not name.endswith("/"):
                        found[name] = entry
                        yield name

        chosen = select(listed(), wanted)
        return [s3_remote(client, self.bucket, folder + name, name) for name in chosen]
