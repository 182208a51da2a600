"""Clients of the management API: with a manage key, with an infer key, with none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from mmserve.key_actions import create_key
from mmserve.models import AccessKey
from registry import actions
from registry.models import Model, ModelVersion
from tests.checkpoints import write_checkpoint


@pytest.fixture
def ada(db: None) -> User:
    return User.objects.create_superuser("ada", password="correct horse")


@pytest.fixture
def manage_key(ada: User) -> tuple[AccessKey, str]:
    return create_key(name="ops", user=ada, actor="tests", scopes=["infer", "manage"])


@pytest.fixture
def infer_key(ada: User) -> tuple[AccessKey, str]:
    return create_key(name="app", user=ada, actor="tests")


def client_with(raw_key: str) -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {raw_key}")
    return client


@pytest.fixture
def manager(manage_key: tuple[AccessKey, str]) -> APIClient:
    return client_with(manage_key[1])


@pytest.fixture
def reader(infer_key: tuple[AccessKey, str]) -> APIClient:
    return client_with(infer_key[1])


@pytest.fixture
def source(tmp_path: Path, settings: Any) -> str:
    """The URI of a tiny checkpoint that may be read."""
    settings.DATA_DIR = tmp_path
    settings.STORAGE_URL = f"file://{tmp_path}/models"
    return write_checkpoint(tmp_path / "checkpoint").as_uri()


@pytest.fixture
def ready(source: str, db: None) -> ModelVersion:
    """``acme/echo@1``, its files whole."""
    model = actions.register_model("acme/echo", actor="tests")
    return make_ready(model, "1", source)


def make_ready(model: Model, name: str, source: str) -> ModelVersion:
    version = actions.register_version(model, name, source, actor="tests")
    actions.versions.transition(version, "fetching")
    version.facts = {"context_length": 64}
    version.capabilities = ["completion"]
    actions.versions.finish_import(version, actor="tests")
    return version
