"""Tiny checkpoints for tests: the files of a model, without a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def safetensors(tensors: dict[str, tuple[str, list[int], int]], **header: Any) -> bytes:
    """A safetensors file with zeros; each tensor is (dtype, shape, bytes)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}, **header}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def write_checkpoint(folder: Path, config: dict[str, Any] | None = None, chat: bool = True) -> Path:
    """A folder that looks like a model: 256 + 64 bf16 parameters in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    first = safetensors({"model.embed_tokens.weight": ("BF16", [32, 8], 512)})
    (folder / "model-1.safetensors").write_bytes(first)
    (folder / "model-2.safetensors").write_bytes(safetensors({"model.norm.weight": ("BF16", [64], 128)}))
    template = {"chat_template": "{{ messages[0].content }}"} if chat else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(template))
    return folder


def damage(file: Path, *, keep_time: bool) -> None:
    """Turn bits of its beginning over; its length and, if asked, its time stay."""
    before = file.stat()
    file.chmod(0o600)
    with file.open("r+b") as whole:
        whole.seek(8)
        head = whole.read(64)
        whole.seek(8)
        whole.write(bytes(byte ^ 0xFF for byte in head))
    if keep_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
