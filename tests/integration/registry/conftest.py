"""Models and versions of a registry of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import actions
from registry.models import Model, ModelVersion, VersionState
from tests.checkpoints import write_checkpoint
from tests.integration.registry.s3_server import s3, s3_server

__all__ = ["s3", "s3_server"]


@pytest.fixture
def data_dir(tmp_path: Path, settings: Any) -> Path:
    """A data folder of the test's own, with the store and the cache in it."""
    settings.DATA_DIR = tmp_path / "data"
    settings.CACHE_DIR = tmp_path / "data" / "cache"
    settings.SOURCE_ROOTS = []
    settings.STORAGE_URL = f"file://{tmp_path}/data/models"
    settings.DATA_DIR.mkdir()
    return settings.DATA_DIR


@pytest.fixture
def checkpoint(data_dir: Path) -> Path:
    """A folder with a tiny checkpoint, which file:// may read."""
    return write_checkpoint(data_dir / "checkpoint")


@pytest.fixture
def model(db: None) -> Model:
    return actions.register_model("acme/echo", actor="tests")


@pytest.fixture
def version_of(model: Model, checkpoint: Path) -> Callable[..., ModelVersion]:
    """A function that registers a version of ``model``, ready unless told otherwise."""

    def make(name: str, state: str = VersionState.READY) -> ModelVersion:
        row = actions.register_version(model, name, checkpoint.as_uri(), actor="tests")
        if state == VersionState.READY:
            actions.versions.transition(row, VersionState.FETCHING)
            actions.versions.finish_import(row, actor="tests")
        elif state != VersionState.REGISTERED:
            ModelVersion.objects.filter(pk=row.pk).update(state=state)
            row.state = state
        return row

    return make
