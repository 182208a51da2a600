"""Headers and configs that a stranger made: a clear error, bounded memory, no crash."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmserve.errors import InvalidRequest
from registry.facts import read_facts
from tests.checkpoints import CONFIG, safetensors, write_checkpoint

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
FIELDS = st.sampled_from(
    [*CONFIG, "text_config", "quantization_config", "auto_map", "vision_config", "sliding_window"]
)


def read_or_refuse(folder: Path) -> None:
    """Facts, or an error in words: nothing else."""
    with contextlib.suppress(InvalidRequest):
        facts = read_facts(folder)
        json.dumps(facts.as_dict())
        assert facts.parameters >= 0


@FUZZ
@given(content=st.binary(max_size=400))
def test_any_bytes_as_weights(tmp_path: Path, content: bytes) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / "model-1.safetensors").write_bytes(content)
    read_or_refuse(folder)


@FUZZ
@given(header=JSON, length=st.none() | st.integers(0, 2**64 - 1))
def test_any_header(tmp_path: Path, header: Any, length: int | None) -> None:
    folder = write_checkpoint(tmp_path / "c")
    text = json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / "model-1.safetensors").write_bytes(size.to_bytes(8, "little") + text)
    read_or_refuse(folder)


@FUZZ
@given(
    dtype=st.text(max_size=8),
    shape=st.lists(st.integers(-(2**70), 2**70) | st.booleans(), max_size=6),
    offsets=st.lists(st.integers(-10, 2000), max_size=3),
)
def test_any_tensor(tmp_path: Path, dtype: str, shape: list[Any], offsets: list[int]) -> None:
    folder = write_checkpoint(tmp_path / "c")
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    (folder / "model-1.safetensors").write_bytes(safetensors({}, w=entry) + bytes(1000))
    read_or_refuse(folder)


@FUZZ
@given(changes=st.dictionaries(FIELDS, JSON, max_size=5))
def test_any_config(tmp_path: Path, changes: dict[str, Any]) -> None:
    read_or_refuse(write_checkpoint(tmp_path / "c", changes))


@FUZZ
@given(
    name=st.sampled_from(
        ["config.json", "tokenizer_config.json", "model.safetensors.index.json", "README.md"]
    ),
    content=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_any_text_file(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_checkpoint(tmp_path / "c")
    (folder / name).write_bytes(content)
    read_or_refuse(folder)
    (folder / name).unlink()


def test_a_header_that_claims_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "model-1.safetensors").write_bytes((90_000_000).to_bytes(8, "little") + b"{" * 1000)
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="length is wrong"):
        read_facts(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting_is_refused(tmp_path: Path, depth: int) -> None:
    folder = write_checkpoint(tmp_path)
    text = b'{"a":' * depth + b"1" + b"}" * depth
    (folder / "config.json").write_bytes(text)
    with pytest.raises(InvalidRequest, match="config.json"):
        read_facts(folder)


def test_a_card_that_unfolds_into_much_says_nothing(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    (folder / "README.md").write_text(f"---\n{bomb}language: *i\n---\n")
    assert read_facts(folder).languages == []

    (folder / "README.md").write_text("---\nlanguage: [en, de]\n---\nHello")
    assert read_facts(folder).languages == ["en", "de"]


def test_what_the_files_say_of_a_models_abilities(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path, {"vision_config": {}, "num_local_experts": 8, "auto_map": {"x": "y.Z"}}
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{% if tools %}{% endif %}", "tokenizer_class": "LlamaTokenizer"})
    )
    facts = read_facts(folder)
    assert facts.capabilities == ["completion", "chat", "tools", "json", "vision"]
    assert (facts.experts, facts.custom_code, facts.tokenizer) == (8, True, "LlamaTokenizer")

    embedder = write_checkpoint(tmp_path / "b", {"architectures": ["BertModel"]}, chat=False)
    assert read_facts(embedder).capabilities == ["embedding"]
