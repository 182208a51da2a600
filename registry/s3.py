"""S3, for sources and for the store: one client an endpoint, errors in words, objects read in ranges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from mmserve.errors import InvalidRequest, MmserveError, NotFound, PermissionDenied, Unavailable
from registry.fetch import Chunks, FetchInterrupted, RemoteFile

CHUNK_BYTES = 2**18
# Read timeouts are what a slow server costs at most before the range is asked for again.
CONFIG = Config(
    connect_timeout=5,
    read_timeout=20,
    retries={"max_attempts": 3, "mode": "standard"},
    max_pool_connections=16,
    # Stores other than AWS's own do not know the newer checksums.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
REFUSED = frozenset(
    {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "401"}
)
GONE = frozenset({"404", "NoSuchKey", "NotFound"})
CHANGED = frozenset({"412", "PreconditionFailed", "416", "InvalidRange"})
# Raised while a body is read or a connection made: another try may do.
PASSING = (
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    boto.ConnectionError,
    boto.HTTPClientError,
)


@lru_cache(maxsize=16)
def client_for(endpoint: str | None) -> Any:
    """A client; boto3's are safe to share between threads."""
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=CONFIG)
    except (boto.BotoCoreError, ValueError) as error:
        raise InvalidRequest(f"the S3 endpoint cannot be used: {type(error).__name__}") from error


@contextmanager
def said_in_words(bucket: str, key: str = "") -> Iterator[None]:
    """Turn what boto3 raises into errors that name bucket and object, and no key."""
    try:
        yield
    except (boto.ClientError, boto.BotoCoreError) as error:
        raise in_words(error, bucket, key) from error


def in_words(error: Exception, bucket: str, key: str = "") -> MmserveError:
    """The error for an operator."""
    what = f"s3://{bucket}/{key}" if key else f"bucket {bucket}"
    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            return NotFound(f"There is no bucket {bucket}.", param="source_uri")
        if code in REFUSED:
            return PermissionDenied(f"The store refused its keys for {what} ({code}).")
        if code in GONE:
            return NotFound(f"There is no {what}.", param="source_uri")
        if code in CHANGED:
            return InvalidRequest(f"{what} was changed while it was fetched")
        return Unavailable(f"The store answered {code or 'an error'} for {what}.")
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return PermissionDenied("There are no keys for the store: set AWS_ACCESS_KEY_ID and its secret.")
    return Unavailable(f"The store does not answer for {what} ({type(error).__name__}).")


def remote_file(client: Any, bucket: str, key: str, path: str, sha256: str | None = None) -> RemoteFile:
    """An object as it is now: a range of it is only read while it has this ETag."""
    with said_in_words(bucket, key):
        head = client.head_object(Bucket=bucket, Key=key)
    etag = head["ETag"]
    return RemoteFile(
        path=path,
        size_bytes=head["ContentLength"],
        validator=etag,
        sha256=sha256,
        open=partial(_read, client, bucket, key, etag),
    )


@contextmanager
def _read(client: Any, bucket: str, key: str, etag: str, start: int, end: int) -> Iterator[Chunks]:
    try:
        answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag)
    except boto.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status >= 500 or status == 429:
            raise FetchInterrupted(f"the store answered {status}") from error
        raise in_words(error, bucket, key) from error
    except PASSING as error:
        raise FetchInterrupted(type(error).__name__) from error
    except boto.BotoCoreError as error:
        raise in_words(error, bucket, key) from error
    body = answer["Body"]
    try:
        yield _chunks(body)
    finally:
        body.close()


def _chunks(body: Any) -> Chunks:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while True:
        try:
            count = body.readinto(buffer)
        except (*PASSING, OSError) as error:
            raise FetchInterrupted(type(error).__name__) from error
        if not count:
            return
        yield buffer[:count]
