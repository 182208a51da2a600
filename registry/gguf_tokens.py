"""Which special tokens a GGUF file wants around a prompt: its metadata, else what llama.cpp does without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

PREFIX = "tokenizer.ggml."
# The byte-pair vocabularies that begin with BOS where nothing is said (llama.cpp, src/llama-vocab.cpp).
BPE_WITH_BOS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
    | {"tekken", "chameleon"}
)


class SpecialTokens(NamedTuple):
    """The ids of BOS and EOS where the file names them, and whether each is put around a prompt."""

    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    add_eos: bool


def special_tokens(metadata: Mapping[str, Any]) -> SpecialTokens:
    """By the metadata of a whole file."""
    model, pre = metadata.get(PREFIX + "model"), metadata.get(PREFIX + "pre")
    by_default = model == "llama" or pre in BPE_WITH_BOS
    return SpecialTokens(
        metadata.get(PREFIX + "bos_token_id"),
        metadata.get(PREFIX + "eos_token_id"),
        bool(metadata.get(PREFIX + "add_bos_token", by_default)),
        bool(metadata.get(PREFIX + "add_eos_token", model == "t5")),
    )


def apply(wanted: SpecialTokens, tokenizer: Any) -> None:
    """Make a tokenizer of transformers put them there; it leaves them out of what it reads of a GGUF file."""
    if wanted.bos_id is not None:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(wanted.bos_id)
    if wanted.eos_id is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(wanted.eos_id)
    tokenizer.add_bos_token = wanted.add_bos
    tokenizer.add_eos_token = wanted.add_eos
