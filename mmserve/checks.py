"""System checks: a wrong setting is refused at start, in words that say what to set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from redis.connection import parse_url

MIN_SECRET_CHARS = 50
MIN_SECRET_DISTINCT = 5
MIN_MEMORY_BYTES = 256 * 2**20
LONGEST_PATIENCE_S = 86400.0
# A request waits that long for a replica that is about to die.
LONGEST_AFFINITY_S = 10.0
BODY_BYTES = (1024, 2**30)
REDIS_SCHEMES = ("redis", "rediss", "unix")
SOURCE_HOST = re.compile(r"(?:https?://)?(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?")
DATABASES = ("django.db.backends.sqlite3", "django.db.backends.postgresql")


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Every check of mmserve's own settings."""
    return [
        *secret_key(),
        *memory(),
        *patience(),
        *data_dir(),
        *servers(),
        *storage(),
        *fetching(),
        *listening(),
        *affinity(),
    ]


def secret_key() -> Iterator[CheckMessage]:
    key = settings.SECRET_KEY
    weak = (
        len(key) < MIN_SECRET_CHARS
        or len(set(key)) < MIN_SECRET_DISTINCT
        or key.startswith(("insecure-", "django-insecure-"))
    )
    if weak and not settings.DEBUG:
        yield Error(
            "The secret key is weak or was not generated yet, and MMSERVE_DEBUG is off.",
            hint=f"Set DJANGO_SECRET_KEY to {MIN_SECRET_CHARS} or more random characters, "
            "or let `manage.py up` generate one in MMSERVE_DATA_DIR.",
            id="mmserve.E001",
        )


def memory() -> Iterator[CheckMessage]:
    total = psutil.virtual_memory().total
    if settings.MEMORY_BYTES and not MIN_MEMORY_BYTES <= settings.MEMORY_BYTES <= total:
        yield Error(
            f"MMSERVE_MEMORY_BYTES is {settings.MEMORY_BYTES}: engines cannot have that of {total} bytes.",
            hint=f"Set it to bytes from {MIN_MEMORY_BYTES} to {total}, or to 0 for 80% of this machine.",
            id="mmserve.E002",
        )


def patience() -> Iterator[CheckMessage]:
    for name, value, least in (
        ("MMSERVE_NODE_LEASE_S", settings.NODE_LEASE_S, 3.0),
        ("MMSERVE_DRAIN_S", settings.DRAIN_S, 0.0),
        ("MMSERVE_LOAD_TIMEOUT_S", settings.LOAD_TIMEOUT_S, 1.0),
        ("MMSERVE_ENGINE_STUCK_S", settings.ENGINE_STUCK_S, 1.0),
        ("MMSERVE_ENGINE_SILENT_S", settings.ENGINE_SILENT_S, 5.0),
    ):
        if not least <= value <= LONGEST_PATIENCE_S:
            yield Error(
                f"{name} is {value:g}.",
                hint=f"Set it to seconds from {least:g} to {LONGEST_PATIENCE_S:g}.",
                id="mmserve.E013",
            )


def data_dir() -> Iterator[CheckMessage]:
    for name, folder in (("MMSERVE_DATA_DIR", settings.DATA_DIR), ("MMSERVE_CACHE_DIR", settings.CACHE_DIR)):
        if not _can_write_below(folder):
            yield Error(
                f"{folder} cannot be written or created.",
                hint=f"Set {name} to a folder that this user may write.",
                id="mmserve.E003",
            )


def servers() -> Iterator[CheckMessage]:
    if settings.DATABASES["default"]["ENGINE"] not in DATABASES:
        yield Error(
            "DATABASE_URL names a database that mmserve does not run on.",
            hint="Set it to postgres://… or sqlite:///….",
            id="mmserve.E004",
        )
    if not _is_redis(settings.REDIS_URL):
        yield Error(
            "REDIS_URL is not the address of a Redis server.",
            hint="Set it to redis://host:6379/0, rediss://… or unix:///path/to/redis.sock.",
            id="mmserve.E005",
        )


def storage() -> Iterator[CheckMessage]:
    url = urlsplit(settings.STORAGE_URL)
    is_folder = url.scheme == "file" and not url.netloc and url.path.startswith("/")
    is_bucket = url.scheme == "s3" and url.netloc and not url.query and not url.username
    if not is_folder and not is_bucket:
        yield Error(
            f"MMSERVE_STORAGE_URL is {settings.STORAGE_URL!r}: neither a local folder nor a bucket.",
            hint="Set it to file:///absolute/folder or s3://bucket/prefix.",
            id="mmserve.E006",
        )
    for root in settings.SOURCE_ROOTS:
        if not root.is_dir():
            yield Error(
                f"MMSERVE_SOURCE_ROOTS names {root}, which is no folder.",
                hint="List existing folders, separated by commas.",
                id="mmserve.E007",
            )


def fetching() -> Iterator[CheckMessage]:
    endpoints = [("MMSERVE_S3_ENDPOINTS", url) for url in settings.S3_ENDPOINTS]
    if settings.S3_ENDPOINT:
        endpoints.append(("MMSERVE_S3_ENDPOINT", settings.S3_ENDPOINT))
    for name, value in endpoints:
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.path.strip("/"):
            yield Error(
                f"{name} has {value!r}: not the address of an S3 service.",
                hint="Write https://host:port; keys stand in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
                id="mmserve.E010",
            )
    for host in settings.SOURCE_HOSTS:
        if not SOURCE_HOST.fullmatch(host):
            yield Error(
                f"MMSERVE_SOURCE_HOSTS has {host!r}: not a host.",
                hint="List host, host:port, *.host or http://host:port, separated by commas.",
                id="mmserve.E011",
            )
    for name, count in (
        ("MMSERVE_CACHE_BYTES", settings.CACHE_BYTES),
        ("MMSERVE_FETCH_BYTES_PER_S", settings.FETCH_BYTES_PER_S),
        ("MMSERVE_TOKENIZER_BYTES", settings.TOKENIZER_BYTES),
    ):
        if count < 0:
            yield Error(
                f"{name} is {count}.", hint="Set it to a number of bytes, or to 0.", id="mmserve.E012"
            )


def listening() -> Iterator[CheckMessage]:
    if not 1 <= settings.PORT <= 65535:
        yield Error(
            f"MMSERVE_PORT is {settings.PORT}.", hint="Set it to a port from 1 to 65535.", id="mmserve.E008"
        )
    low, high = BODY_BYTES
    if not low <= settings.MAX_BODY_BYTES <= high:
        yield Error(
            f"MMSERVE_MAX_BODY_BYTES is {settings.MAX_BODY_BYTES}.",
            hint=f"Set it to a number of bytes from {low} to {high}.",
            id="mmserve.E009",
        )


def affinity() -> Iterator[CheckMessage]:
    for name, value, least, most in (
        ("MMSERVE_AFFINITY_FACTOR", settings.AFFINITY_FACTOR, 1.0, 100.0),
        ("MMSERVE_AFFINITY_SLACK", settings.AFFINITY_SLACK, 0, 10_000),
        ("MMSERVE_AFFINITY_WAIT_S", settings.AFFINITY_WAIT_S, 0.0, LONGEST_AFFINITY_S),
        ("MMSERVE_AFFINITY_BLOCKS", settings.AFFINITY_BLOCKS, 1, 10_000_000),
    ):
        if not least <= value <= most:
            yield Error(
                f"{name} is {value:g}.",
                hint=f"Set it to a number from {least:g} to {most:g}.",
                id="mmserve.E014",
            )


def _is_redis(url: str) -> bool:
    try:
        parse_url(url)
    except ValueError:
        return False
    return urlsplit(url).scheme in REDIS_SCHEMES


def _can_write_below(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
