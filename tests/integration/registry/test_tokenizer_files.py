"""Where the tokenizer of a version lies, of those that are ready and here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.tokenizer_files import tokenizer_file
from registry import actions, jobs, store
from registry.models import Model, ModelVersion

Versions = Callable[..., ModelVersion]


def test_a_ready_version_has_the_tokenizer_of_its_files(
    model: Model, version_of: Versions, checkpoint: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    (checkpoint / "tokenizer.json").write_text("{}")
    version = version_of("1", "registered")
    assert tokenizer_file("acme/echo@1") is None
    actions.import_version(version, actor="tests")
    jobs.import_version(version.pk)

    found = tokenizer_file("acme/echo@1")

    version.refresh_from_db()
    assert found is not None
    assert found.path == store.location(version.path) / "tokenizer.json"
    assert (found.size_bytes, found.sha256) == (2, version.files.get(path="tokenizer.json").sha256)
    found.path.unlink()
    assert tokenizer_file("acme/echo@1") is None
    assert tokenizer_file("acme/echo@2") is None
    assert tokenizer_file("nobody") is None
