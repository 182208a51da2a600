"""Which special tokens a GGUF's metadata asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.gguf_header import read_metadata
from registry.gguf_tokens import PREFIX, special_tokens


@pytest.mark.parametrize(
    ("said", "add_bos", "add_eos"),
    [
        ({"model": "llama", "add_bos_token": True, "add_eos_token": False}, True, False),  # Gemma 3's
        ({"model": "gpt2", "pre": "smollm", "add_bos_token": False}, False, False),  # SmolLM2's
        ({"model": "llama", "add_bos_token": False, "add_eos_token": True}, False, True),
        ({"model": "llama"}, True, False),
        ({"model": "gpt2", "pre": "llama-bpe"}, True, False),
        ({"model": "gpt2", "pre": "llama-bpe", "add_bos_token": False}, False, False),
        ({"model": "gpt2", "pre": "qwen2"}, False, False),
        ({"model": "t5"}, False, True),
        ({}, False, False),
    ],
)
def test_what_the_metadata_says_holds_and_else_what_llama_cpp_does(
    said: dict[str, Any], add_bos: bool, add_eos: bool
) -> None:
    found = special_tokens({PREFIX + name: value for name, value in said.items()})

    assert (found.add_bos, found.add_eos) == (add_bos, add_eos)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"nope", "is not a GGUF file"),
        (b"GGUF" + bytes(3), "ends within its header"),
        (b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\1" + bytes(7) + b"k\x63\0\0\0", "kind 99"),
    ],
)
def test_a_broken_header_says_so(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)

    with pytest.raises(ValueError, match=words):
        read_metadata(tmp_path / "m.gguf")
