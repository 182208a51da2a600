"""Folders that stand for this machine's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def data_dir(tmp_path: Path, settings: Any) -> Path:
    """A data folder of the test's own, with the store and the cache in it."""
    settings.DATA_DIR = tmp_path / "data"
    settings.CACHE_DIR = tmp_path / "data" / "cache"
    settings.SOURCE_ROOTS = []
    settings.STORAGE_URL = f"file://{tmp_path}/data/models"
    settings.DATA_DIR.mkdir()
    return settings.DATA_DIR
