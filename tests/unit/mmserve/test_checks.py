"""A wrong setting is refused at start, in words that say what to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmserve.checks import check_settings

GOOD_KEY = "k3y-" + "abcdefghij" * 6


def found(settings: Any) -> dict[str, str]:
    return {message.id: f"{message.msg} {message.hint}" for message in check_settings(None)}


@pytest.fixture(autouse=True)
def _good(settings: Any, tmp_path: Path) -> None:
    settings.SECRET_KEY = GOOD_KEY
    settings.DATA_DIR = tmp_path
    settings.CACHE_DIR = tmp_path / "cache"
    settings.STORAGE_URL = f"file://{tmp_path}"
    settings.SOURCE_ROOTS = []


def test_good_settings_pass(settings: Any) -> None:
    assert found(settings) == {}


@pytest.mark.parametrize("key", ["short", "a" * 80, "insecure-not-generated-yet" + GOOD_KEY])
def test_a_weak_secret_is_refused_with_debug_off_only(settings: Any, key: str) -> None:
    settings.SECRET_KEY = key

    assert "DJANGO_SECRET_KEY" in found(settings)["mmserve.E001"]
    settings.DEBUG = True
    assert found(settings) == {}


@pytest.mark.parametrize(
    ("name", "value", "id", "says"),
    [
        ("MEMORY_BYTES", -1, "mmserve.E002", "MMSERVE_MEMORY_BYTES"),
        ("MEMORY_BYTES", 1, "mmserve.E002", "MMSERVE_MEMORY_BYTES"),
        ("MEMORY_BYTES", 2**60, "mmserve.E002", "MMSERVE_MEMORY_BYTES"),
        ("DATA_DIR", Path("/etc/passwd/x"), "mmserve.E003", "MMSERVE_DATA_DIR"),
        ("REDIS_URL", "http://localhost", "mmserve.E005", "REDIS_URL"),
        ("REDIS_URL", "redis://localhost:x", "mmserve.E005", "REDIS_URL"),
        ("STORAGE_URL", "s3://", "mmserve.E006", "MMSERVE_STORAGE_URL"),
        ("STORAGE_URL", "s3://key:secret@bucket/x", "mmserve.E006", "MMSERVE_STORAGE_URL"),
        ("STORAGE_URL", "ftp://bucket/x", "mmserve.E006", "MMSERVE_STORAGE_URL"),
        ("S3_ENDPOINT", "minio:9000", "mmserve.E010", "MMSERVE_S3_ENDPOINT"),
        ("S3_ENDPOINTS", ["ftp://minio"], "mmserve.E010", "MMSERVE_S3_ENDPOINTS"),
        ("SOURCE_HOSTS", ["https://a/b"], "mmserve.E011", "MMSERVE_SOURCE_HOSTS"),
        ("SOURCE_HOSTS", ["*"], "mmserve.E011", "MMSERVE_SOURCE_HOSTS"),
        ("CACHE_BYTES", -1, "mmserve.E012", "MMSERVE_CACHE_BYTES"),
        ("FETCH_BYTES_PER_S", -1, "mmserve.E012", "MMSERVE_FETCH_BYTES_PER_S"),
        ("STORAGE_URL", "file://relative", "mmserve.E006", "MMSERVE_STORAGE_URL"),
        ("SOURCE_ROOTS", [Path("/nowhere/at/all")], "mmserve.E007", "MMSERVE_SOURCE_ROOTS"),
        ("AFFINITY_FACTOR", 0.5, "mmserve.E014", "MMSERVE_AFFINITY_FACTOR"),
        ("AFFINITY_SLACK", -1, "mmserve.E014", "MMSERVE_AFFINITY_SLACK"),
        ("AFFINITY_WAIT_S", 60.0, "mmserve.E014", "MMSERVE_AFFINITY_WAIT_S"),
        ("AFFINITY_BLOCKS", 0, "mmserve.E014", "MMSERVE_AFFINITY_BLOCKS"),
        ("PORT", 0, "mmserve.E008", "MMSERVE_PORT"),
        ("PORT", 70000, "mmserve.E008", "MMSERVE_PORT"),
        ("MAX_BODY_BYTES", 1, "mmserve.E009", "MMSERVE_MAX_BODY_BYTES"),
        ("TOKENIZER_BYTES", -1, "mmserve.E012", "MMSERVE_TOKENIZER_BYTES"),
    ],
)
def test_a_wrong_setting_is_named(settings: Any, name: str, value: Any, id: str, says: str) -> None:
    setattr(settings, name, value)

    assert says in found(settings)[id]
