"""``hf://org/name[@revision]``: a repository of the Hugging Face hub (or of HF_ENDPOINT), at one commit.

HF_TOKEN is sent to the hub alone. Files that the hub keeps in LFS or Xet come with their SHA-256.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mmserve.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable
from registry.report import Report
from registry.sources import Wanted
from registry.sources.http import WebFiles
from registry.sources.ranged import fetch_ranged
from registry.sources.selection import select

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
REPOSITORY = re.compile(rf"({NAME}/{NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
# Where the hub redirects to for large files.
HUB_HOSTS = ("huggingface.co", "*.huggingface.co", "*.hf.co")
TIMEOUT_S = 10.0
OFFLINE = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceSource:
    """One repository at a revision."""

    repository: str
    revision: str

    @classmethod
    def parse(cls, uri: str) -> HuggingFaceSource:
        """From an ``hf://`` URI."""
        match = REPOSITORY.fullmatch(uri.removeprefix("hf://"))
        if match is None or ".." in uri:
            raise InvalidRequest(
                f"source_uri: {uri[:200]!r} is not hf://org/name@revision", param="source_uri"
            )
        return cls(repository=match[1], revision=match[2] or "main")

    def fetch(self, into: Path, report: Report, wanted: Wanted) -> Mapping[str, str]:
        """Every file of the commit that the revision names now."""
        from huggingface_hub import hf_hub_url

        endpoint = _endpoint()
        commit, digests = self._listing(endpoint)
        token = os.environ.get("HF_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with WebFiles([*HUB_HOSTS, _entry(endpoint)], "HF_ENDPOINT", headers) as web:
            remotes = [
                web.remote_file(
                    hf_hub_url(self.repository, path, revision=commit, endpoint=endpoint), path, digests[path]
                )
                for path in select(digests, wanted)
            ]
            return fetch_ranged(remotes, into, report, wanted)

    def _listing(self, endpoint: str) -> tuple[str, dict[str, str | None]]:
        """The commit, and each file's SHA-256 where the hub knows it."""
        import httpx2
        from huggingface_hub import HfApi, close_session, errors

        if os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE:
            raise Unavailable("HF_HUB_OFFLINE is set: the hub is not asked.")
        where = f"{self.repository}@{self.revision}"
        try:
            info = HfApi(endpoint=endpoint).model_info(
                self.repository, revision=self.revision, files_metadata=True, timeout=TIMEOUT_S
            )
        except errors.GatedRepoError as error:
            raise PermissionDenied(f"{where} is gated: set HF_TOKEN to a token that may read it.") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise NotFound(
                f"The hub knows no {where}, or HF_TOKEN may not read it.", param="source_uri"
            ) from error
        except errors.HfHubHTTPError as error:
            raise Unavailable(f"The hub answered an error for {where}.") from error
        except (httpx2.HTTPError, OSError) as error:
            raise Unavailable(f"The hub at {endpoint} cannot be reached ({type(error).__name__}).") from error
        finally:
            close_session()
        if not info.sha or info.siblings is None:
            raise Unavailable(f"The hub did not list the files of {where}.")
        return info.sha, {entry.rfilename: entry.lfs.sha256 if entry.lfs else None for entry in info.siblings}


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _entry(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc}"
