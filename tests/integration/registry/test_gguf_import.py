"""A tiny GGUF, made here, becomes safetensors by the real conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mmserve.errors import InvalidRequest
from registry import actions, gguf_import, jobs, store
from registry.facts import read_facts
from registry.gguf_header import read_metadata
from registry.models import Model, ModelVersion, VersionState

BOS, EOS = 0, 1
HIDDEN, HEADS, INNER, VOCABULARY, CONTEXT = 32, 4, 64, 64, 128
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def write_gguf(path: Path, *, add_bos: bool | None = None, add_eos: bool | None = None) -> None:
    """A one-layer llama with a byte-pair vocabulary of 64 tokens; None says nothing of BOS and EOS."""
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
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if add_eos is not None:
        writer.add_add_eos_token(add_eos)
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
    # It says nothing of BOS, and llama.cpp puts none before the prompts of such a vocabulary.
    assert encoded(folder, "!") == [2]


def encoded(folder: Path, text: str) -> list[int]:
    """As the gateway's tokenizer has it, and the engine's."""
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(str(folder)).encode(text) == ids
    return ids


@pytest.mark.parametrize(("add_bos", "add_eos", "ids"), [(True, False, [BOS, 2]), (False, True, [2, EOS])])
def test_the_special_tokens_that_a_gguf_asks_for_are_put_around_a_prompt(
    tmp_path: Path, add_bos: bool, add_eos: bool, ids: list[int]
) -> None:
    write_gguf(tmp_path / "tiny.gguf", add_bos=add_bos, add_eos=add_eos)
    (tmp_path / "out").mkdir()

    gguf_import.convert(tmp_path / "tiny.gguf", tmp_path / "out", lambda done, total: None)

    assert encoded(tmp_path / "out", "!") == ids


def test_a_header_is_read_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", add_bos=True)
    fields = gguf.GGUFReader(tmp_path / "tiny.gguf").fields.values()

    found = read_metadata(tmp_path / "tiny.gguf")

    scalars = [field for field in fields if field.types and field.types[0] != gguf.GGUFValueType.ARRAY]
    assert found.items() <= {field.name: field.contents() for field in scalars}.items()
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.bos_token_id"] == BOS
    assert "tokenizer.ggml.tokens" not in found


def test_what_is_no_gguf_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"nope")

    with pytest.raises(InvalidRequest, match=r"m\.gguf is not a GGUF file"):
        gguf_import.convert(tmp_path / "m.gguf", tmp_path, lambda done, total: None)


def test_the_last_words_of_a_failed_conversion_are_its_reason(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))

    with pytest.raises(InvalidRequest, match=r"m\.gguf could not be converted: \w+Error"):
        gguf_import.convert(tmp_path / "m.gguf", tmp_path / "out", lambda done, total: None)


def test_the_conversion_reports_what_the_percentages_on_stderr_say_and_never_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_file = tmp_path / "m.gguf"
    gguf_file.write_bytes(b"GGUF" + bytes(996))
    reports: list[tuple[int, int | None]] = []
    popen: Callable[..., Any] = gguf_import.subprocess.Popen

    def talker(command: list[str], **kwargs: Any) -> Any:
        return popen(
            ["sh", "-c", r"printf 'Reading:  5%%|\rReading: 50%%|\rPlacing:  0%%|\rPlacing: 70%%|\r' >&2"],
            **kwargs,
        )

    monkeypatch.setattr(gguf_import.subprocess, "Popen", talker)
    gguf_import.convert(gguf_file, tmp_path, lambda done, total: reports.append((done, total)))

    assert reports == [(0, 1000), (50, 1000), (500, 1000), (500, 1000), (700, 1000)]
