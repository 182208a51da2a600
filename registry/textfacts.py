"""Facts that stand in a checkpoint's small text files: chat template, tokenizer, languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mmserve.errors import InvalidRequest

MAX_JSON_BYTES = 32 * 2**20
MAX_TEMPLATE_BYTES = 2**20
MAX_CARD_BYTES = 64 * 2**10
MAX_LANGUAGES = 100
# Files that tell a tokenizer's kind, when its own configuration does not.
TOKENIZERS = {
    "tokenizer.json": "fast",
    "tokenizer.model": "sentencepiece",
    "tekken.json": "tekken",
    "vocab.json": "bpe",
    "vocab.txt": "wordpiece",
}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of bounded size; InvalidRequest names the file."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise InvalidRequest(f"{file.name} is larger than {MAX_JSON_BYTES} bytes")
        found = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise InvalidRequest(f"{file.name} is missing") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{file.name} is not a JSON object")
    return found


def chat_template(folder: Path) -> str:
    """The text of the chat template (of all of them, where there are several); empty: none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        with file.open("rb") as reader:
            return reader.read(MAX_TEMPLATE_BYTES).decode(errors="replace")
    file = folder / "tokenizer_config.json"
    found = read_json(file).get("chat_template") if file.is_file() else None
    return found if isinstance(found, str) else json.dumps(found) if found else ""


def tokenizer_kind(folder: Path) -> str | None:
    """The tokenizer's class, or what its files look like."""
    file = folder / "tokenizer_config.json"
    named = read_json(file).get("tokenizer_class") if file.is_file() else None
    if isinstance(named, str):
        return named[:100]
    return next((kind for name, kind in TOKENIZERS.items() if (folder / name).is_file()), None)


def languages(folder: Path) -> list[str]:
    """What the model card's front matter says; a card that cannot be read says nothing."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    with card.open("rb") as reader:
        text = reader.read(MAX_CARD_BYTES).decode(errors="replace")
    front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    try:
        found = (yaml.safe_load(front) or {}).get("language") or []
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError):
        return []
    words = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return [word[:35] for word in words if isinstance(word, str)][:MAX_LANGUAGES]
