"""The facts of a checkpoint, and what garbage is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.errors import InvalidRequest
from registry.facts import read_facts
from tests.checkpoints import safetensors, write_checkpoint


def test_the_facts_come_from_the_config_and_the_headers_of_all_files(tmp_path: Path) -> None:
    facts = read_facts(write_checkpoint(tmp_path, {"sliding_window": 32}))

    assert facts.as_dict() == {
        "architecture": "LlamaForCausalLM",
        "parameters": 320,
        "layers": 1,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "vocabulary": 32,
        "context_length": 64,
        "sliding_window": 32,
        "dtype": "bfloat16",
        "quantization": None,
        "tied_embeddings": True,
        "weight_bytes": 640,
        "chat_template": True,
        "experts": None,
        "tools": False,
        "vision": False,
        "embedding": False,
        "tokenizer": None,
        "languages": [],
        "custom_code": False,
        "kv_lora_rank": None,
        "rope_head_size": None,
        "window_layers": None,
        "recurrent_layers": None,
        "state_size": None,
    }


def test_weights_that_stand_there_twice_are_counted_once(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    weights = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    again = safetensors({"everything": ("BF16", [320], 640)})
    (tmp_path / "consolidated.safetensors").write_bytes(again)

    facts = read_facts(tmp_path)

    assert (facts.parameters, facts.weight_bytes) == (320, 640)


def test_a_chat_template_makes_a_version_able_to_chat(tmp_path: Path) -> None:
    assert read_facts(write_checkpoint(tmp_path / "a")).capabilities == ["completion", "chat", "json"]
    assert read_facts(write_checkpoint(tmp_path / "b", chat=False)).capabilities == ["completion", "json"]


def test_a_chat_template_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, chat=False)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")

    assert read_facts(tmp_path).chat_template is True


def test_a_head_size_of_its_own_wins_over_the_quotient(tmp_path: Path) -> None:
    assert read_facts(write_checkpoint(tmp_path, {"head_dim": 16})).head_size == 16


def test_without_kv_heads_every_head_has_its_own(tmp_path: Path) -> None:
    assert read_facts(write_checkpoint(tmp_path, {"num_key_value_heads": None})).kv_heads == 4


def test_a_model_that_also_sees_keeps_its_numbers_one_level_down(tmp_path: Path) -> None:
    config = {"text_config": {"hidden_size": 24, "num_attention_heads": 3}, "hidden_size": None}

    facts = read_facts(write_checkpoint(tmp_path, config))

    assert (facts.hidden_size, facts.heads, facts.head_size) == (24, 3, 8)


def test_the_quantization_is_named(tmp_path: Path) -> None:
    facts = read_facts(write_checkpoint(tmp_path, {"quantization_config": {"quant_method": "awq"}}))

    assert facts.quantization == "awq"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": []}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"max_position_embeddings": 10**30}, "max_position_embeddings"),
        ({"quantization_config": {}}, "quant_method"),
        ({"text_config": [1]}, "text_config"),
    ],
)
def test_a_wrong_field_of_the_config_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        read_facts(write_checkpoint(tmp_path, config))

    assert "config.json" in refused.value.message


@pytest.mark.parametrize("garbage", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"NaN"])
def test_a_config_of_garbage_is_refused_by_its_name(tmp_path: Path, garbage: bytes) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(garbage)

    with pytest.raises(InvalidRequest, match=r"config\.json"):
        read_facts(tmp_path)


def test_a_missing_config_is_refused_by_its_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()

    with pytest.raises(InvalidRequest, match=r"config\.json is missing"):
        read_facts(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()

    with pytest.raises(InvalidRequest, match="no .safetensors file"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"{nah",
        safetensors({}, tensor={"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}),
        safetensors({}, tensor={"dtype": "BF16", "shape": ["4"], "data_offsets": [0, 0]}),
        safetensors({}, tensor={"dtype": "BF16", "shape": [-4], "data_offsets": [0, 0]}),
        safetensors({}, tensor={"dtype": 7, "shape": [4], "data_offsets": [0, 0]}),
        safetensors({}, tensor=None),
    ],
)
def test_weights_of_garbage_are_refused_by_their_name(tmp_path: Path, content: bytes) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(content)

    with pytest.raises(InvalidRequest, match=r"model-2\.safetensors"):
        read_facts(tmp_path)


@given(content=st.binary(max_size=200))
def test_no_bytes_at_all_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = write_checkpoint(tmp_path_factory.mktemp("fuzz"))
    (folder / "model-1.safetensors").write_bytes(content)

    with pytest.raises(InvalidRequest):
        read_facts(folder)
