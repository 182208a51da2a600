"""Where the tokenizer of a ready version lies on this machine, if it does."""

from __future__ import annotations

from inference.gateway.token_counts import TokenizerFile
from registry import cache
from registry.models import ModelVersion, VersionState

NAME = "tokenizer.json"


def tokenizer_file(served_id: str) -> TokenizerFile | None:
    """None: its files are not whole here, or have none. Nothing is fetched for it."""
    model, _, version = served_id.rpartition("@")
    row = ModelVersion.objects.filter(
        model__name=model, version=version, state=VersionState.READY, files__path=NAME
    ).first()
    if row is None or not cache.is_here(row):
        return None
    folder = cache.place_of(row)
    if not (folder / NAME).is_file():
        return None
    entry = row.files.get(path=NAME)
    return TokenizerFile(folder / NAME, entry.size_bytes, entry.sha256)
