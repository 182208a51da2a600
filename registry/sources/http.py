"""Files over HTTP: every hop of a redirect is checked, a range is only read of the file that was seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from urllib.parse import urljoin

import httpx

from mmserve.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable
from registry.fetch import Chunks, FetchInterrupted, RemoteFile
from registry.sources.hosts import check_address, check_url

MAX_REDIRECTS = 5
TIMEOUT = httpx.Timeout(20.0, connect=5.0)
IDENTITY = {"Accept-Encoding": "identity"}


class WebFiles:
    """Reads files from allowed hosts; ``headers`` (a token) go to the first host only, never to where it redirects."""

    def __init__(
        self, allowed: Iterable[str], setting: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._allowed = tuple(allowed)
        self._setting = setting
        self._headers = dict(headers or {})
        self._client = httpx.Client(timeout=TIMEOUT, follow_redirects=False)

    def __enter__(self) -> WebFiles:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def remote_file(self, url: str, path: str, sha256: str | None = None) -> RemoteFile:
        """What the server says of a file: its size, its ETag, whether it can be read in ranges."""
        try:
            with self._get(url, {"Range": "bytes=0-0"}) as response:
                size, ranges = _size(response, path)
                etag, validator = response.headers.get("ETag", ""), _validator(response)
        except FetchInterrupted as error:
            raise Unavailable(f"{path}: the server does not answer: {error}") from error
        # A weak ETag does not promise the same bytes.
        strong = etag if etag and not etag.startswith("W/") else None
        return RemoteFile(
            path=path,
            size_bytes=size,
            validator=validator,
            sha256=sha256,
            ranges=ranges,
            open=partial(self._read, url, path, size if ranges else None, strong, validator),
        )

    @contextmanager
    def _read(
        self,
        url: str,
        path: str,
        ranged_size: int | None,
        etag: str | None,
        validator: str,
        start: int,
        end: int,
    ) -> Iterator[Chunks]:
        wanted = {"Range": f"bytes={start}-{end - 1}"} if ranged_size is not None else {}
        if etag and wanted:
            wanted["If-Range"] = etag
        with self._get(url, wanted) as response:
            as_asked = not wanted or (
                response.status_code == 206
                and response.headers.get("Content-Range") == f"bytes {start}-{end - 1}/{ranged_size}"
            )
            if not as_asked or _validator(response) != validator:
                raise InvalidRequest(f"{path} was changed while it was fetched")
            yield self._chunks(response)

    @staticmethod
    def _chunks(response: httpx.Response) -> Chunks:
        try:
            yield from response.iter_raw(2**18)
        except httpx.HTTPError as error:
            raise FetchInterrupted(type(error).__name__) from error

    @contextmanager
    def _get(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A GET that follows redirects, each to an allowed host."""
        own = self._headers
        for _ in range(MAX_REDIRECTS + 1):
            check_url(url, self._allowed, self._setting)
            request = self._client.build_request("GET", url, headers={**IDENTITY, **own, **headers})
            try:
                response = self._client.send(request, stream=True)
            except httpx.HTTPError as error:
                raise FetchInterrupted(f"{request.url.host}: {type(error).__name__}") from error
            try:
                _check_peer(response, str(request.url.host))
                if not response.has_redirect_location:
                    _check_status(response)
                    yield response
                    return
                url, own = urljoin(url, response.headers["Location"]), {}
            finally:
                response.close()
        raise InvalidRequest(f"source_uri: more than {MAX_REDIRECTS} redirects", param="source_uri")


def _check_peer(response: httpx.Response, host: str) -> None:
    """The name may have resolved to something else when the connection was made."""
    stream = response.extensions.get("network_stream")
    peer = stream.get_extra_info("server_addr") if stream is not None else None
    if peer:
        check_address(str(peer[0]), host, public_only=False)


def _check_status(response: httpx.Response) -> None:
    status, host = response.status_code, response.url.host
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        raise FetchInterrupted(f"{host} answered {status}")
    if status in (401, 403):
        raise PermissionDenied(f"{host} refused the request ({status}).")
    if status in (404, 410):
        raise NotFound(f"{host} has no such file ({status}).", param="source_uri")
    raise InvalidRequest(f"source_uri: {host} answered {status}", param="source_uri")


def _validator(response: httpx.Response) -> str:
    """What names this state of the file, weak or strong; empty: the server does not say."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified", "")


def _size(response: httpx.Response, path: str) -> tuple[int, bool]:
    """Bytes of the whole file, and whether the server reads ranges."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidRequest(f"{path}: the server sends it compressed, so its size cannot be checked")
    text = response.headers.get("Content-Range", "")
    if response.status_code == 206:
        size = text.rpartition("/")[2]
        if size.isascii() and size.isdigit():
            return int(size), True
        raise InvalidRequest(f"{path}: the server does not say its size")
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit():
        return int(length), False
    raise InvalidRequest(f"{path}: the server does not say its size")
