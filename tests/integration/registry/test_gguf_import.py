"""A tiny GGUF, made here, becomes safetensors by the real conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mmserve.errors import InvalidRequest
from registry import actions, gguf_import, jobs, store
from registry.facts import read_facts
from registry.models import Model, ModelVersion, VersionState

HIDDEN, HEADS, INNER, VOCABULARY, CONTEXT = 32, 4, 64, 64, 128
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def write_gguf(path: Path) -> None:
    """A one-layer llama with a byte-pair vocabulary of 64 tokens."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<s>", "</s>", *(chr(33 + number) for number in range(VOCABULARY - 3)), '!"']
    writer.add_token_list(tokens)
    writer.add_token_merges(['! "'])
    writer.add_token_types([3, 3, *[1] * (VOCABULARY - 2)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))

    add("token_embd.weight", VOCABULARY, HIDDEN)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}.weight", HIDDEN, HIDDEN)
    add("blk.0.ffn_gate.weight", INNER, HIDDEN)
    add("blk.0.ffn_up.weight", INNER, HIDDEN)
    add("blk.0.ffn_down.weight", HIDDEN, INNER)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        add(name, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_becomes_a_bf16_version_with_its_chat_template(
    model: Model, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(data_dir / "tiny.gguf")
    version = actions.register_version(model, "1", (data_dir / "tiny.gguf").as_uri(), actor="tests")
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    actions.import_version(version, actor="tests")

    assert jobs.import_version(version.pk) == VersionState.READY

    version = ModelVersion.objects.get()
    expected = {
        "architecture": "LlamaForCausalLM",
        "layers": 1,
        "heads": HEADS,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "vocabulary": VOCABULARY,
        "context_length": CONTEXT,
        "dtype": "bfloat16",
        "quantization": None,
        "chat_template": True,
    }
    assert {name: version.facts[name] for name in expected} == expected
    assert version.facts["weight_bytes"] == 2 * version.facts["parameters"]
    folder = store.location(version.path)
    assert not list(folder.glob("*.gguf"))
    assert read_facts(folder).as_dict() == version.facts


def test_what_is_no_gguf_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"nope")

    with pytest.raises(InvalidRequest, match=r"m\.gguf is not a GGUF file"):
        gguf_import.convert(tmp_path / "m.gguf", tmp_path, lambda done, total: None)


def test_the_last_words_of_a_failed_conversion_are_its_reason(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))

    with pytest.raises(InvalidRequest, match=r"m\.gguf could not be converted: \w+Error"):
        gguf_import.convert(tmp_path / "m.gguf", tmp_path / "out", lambda done, total: None)


def test_the_conversion_reports_what_the_percentages_on_stderr_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_file = tmp_path / "m.gguf"
    gguf_file.write_bytes(b"GGUF" + bytes(996))
    reports: list[tuple[int, int | None]] = []
    popen: Callable[..., Any] = gguf_import.subprocess.Popen

    def talker(command: list[str], **kwargs: Any) -> Any:
        return popen(["sh", "-c", r"printf 'Converting:  5%%|\rConverting: 50%%|\r' >&2"], **kwargs)

    monkeypatch.setattr(gguf_import.subprocess, "Popen", talker)
    gguf_import.convert(gguf_file, tmp_path, lambda done, total: reports.append((done, total)))

    assert reports == [(0, 1000), (50, 1000), (500, 1000)]
