"""The facts of a checkpoint, from its config, safetensors headers and tokenizer; no weight is loaded."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmserve.errors import InvalidRequest
from registry.layerfacts import layer_kinds
from registry.sources.selection import PICKLES
from registry.textfacts import chat_template, languages, read_json, tokenizer_kind

# The safetensors format's own bound.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSION = 2**40
MAIN_INDEX = "model.safetensors.index.json"
# Classes without a head that speaks.
EMBEDDERS = ("BertModel", "RobertaModel", "XLMRobertaModel", "NomicBertModel", "MPNetModel")
DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "fp8",
    "I8": "int8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the engine, the memory estimate and the admin need to know of a version."""

    architecture: str
    parameters: int
    layers: int | None
    heads: int | None
    kv_heads: int | None
    head_size: int | None
    hidden_size: int | None
    intermediate_size: int | None
    vocabulary: int | None
    context_length: int | None
    sliding_window: int | None
    dtype: str
    quantization: str | None
    tied_embeddings: bool
    weight_bytes: int
    chat_template: bool
    experts: int | None = None
    tools: bool = False  # the chat template knows of tools
    vision: bool = False
    embedding: bool = False
    tokenizer: str | None = None
    languages: list[str] = field(default_factory=list)
    custom_code: bool = False  # the config names Python code that comes with the files
    kv_lora_rank: int | None = None  # multi-head latent attention: the compressed vector's size
    rope_head_size: int | None = None  # and that of the rotary key beside it
    window_layers: int | None = None  # layers with a sliding window; None: all, if there is a window
    recurrent_layers: int | None = None  # layers that keep a state instead of a cache
    state_size: int | None = None  # elements of one such layer's state

    def as_dict(self) -> dict[str, Any]:
        """As ``ModelVersion.facts`` keeps them."""
        return asdict(self)

    @property
    def capabilities(self) -> list[str]:
        """What the version can be asked for."""
        if self.embedding:
            return ["embedding"]
        # JSON needs nothing of the model: the engine lets it say nothing else.
        found = {"completion": True, "chat": self.chat_template, "tools": self.tools, "json": True}
        return [name for name, has in {**found, "vision": self.vision}.items() if has]


def read_facts(folder: Path) -> Facts:
    """The facts of the checkpoint in a folder; InvalidRequest names the file that is wrong."""
    config_file = folder / "config.json"
    whole = read_json(config_file)
    # Models that also see or hear keep the language model's numbers one level down.
    config = whole.get("text_config", whole)
    if not isinstance(config, dict):
        raise InvalidRequest("config.json: text_config is not an object")
    parameters, weight_bytes, stored = _weights(folder, config)
    template = chat_template(folder)
    heads, hidden = _number(config, "num_attention_heads", "n_head"), _number(config, "hidden_size", "n_embd")
    head_size = _number(config, "head_dim") or (hidden // heads if heads and hidden else None)
    main_dtype = stored.most_common(1)[0][0] if stored else ""
    architecture = _architecture(whole)
    return Facts(
        architecture=architecture,
        parameters=parameters,
        layers=_number(config, "num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads") or heads,
        head_size=head_size,
        hidden_size=hidden,
        intermediate_size=_number(config, "intermediate_size", "n_inner"),
        vocabulary=_number(config, "vocab_size"),
        context_length=_number(config, "max_position_embeddings", "n_positions", "max_sequence_length"),
        sliding_window=None
        if config.get("use_sliding_window") is False
        else _number(config, "sliding_window"),
        dtype=DTYPES.get(main_dtype, main_dtype.lower() or "unknown"),
        quantization=_quantization(whole),
        tied_embeddings=bool(whole.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        weight_bytes=weight_bytes,
        chat_template=bool(template),
        experts=_number(config, "num_local_experts", "num_experts", "n_routed_experts"),
        tools="tools" in template,
        vision="vision_config" in whole,
        embedding=architecture.endswith(EMBEDDERS) or (folder / "modules.json").is_file(),
        tokenizer=tokenizer_kind(folder),
        languages=languages(folder),
        custom_code=bool(whole.get("auto_map")),
        kv_lora_rank=_number(config, "kv_lora_rank"),
        rope_head_size=_number(config, "qk_rope_head_dim") if config.get("kv_lora_rank") else None,
        **layer_kinds(config),
    )


def _weights(folder: Path, config: dict[str, Any]) -> tuple[int, int, Counter[str]]:
    """Parameters, bytes, and bytes by dtype of all weights."""
    parameters, weight_bytes, stored = 0, 0, Counter[str]()
    files = sorted(folder.glob("*.safetensors"))
    indexed = _indexed(folder, {file.name for file in files})
    for file in files:
        # Some bring the same weights a second time, in one file that no index names.
        counted = not indexed or file.name in indexed
        for dtype, count, size in _tensors(file):
            if counted:
                parameters += count
                weight_bytes += size
                stored[dtype] += size
    if not files:
        # Pickles that the operator allowed: they are not opened here, so their size has to do.
        pickles = [file for file in folder.iterdir() if file.suffix in PICKLES]
        if not pickles:
            raise InvalidRequest(f"There is no .safetensors file in {folder.name}.")
        weight_bytes = sum(file.stat().st_size for file in pickles)
        dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
        parameters = weight_bytes // (4 if dtype == "float32" else 2)
        stored[dtype] = weight_bytes
    return parameters, weight_bytes, stored


def _indexed(folder: Path, names: set[str]) -> set[str]:
    """The shards that the index names (the first, of several); each that any names is here."""
    indexed: set[str] = set()
    for index in sorted(folder.glob("*.safetensors.index.json"), key=lambda file: file.name != MAIN_INDEX):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise InvalidRequest(f"{index.name}: weight_map does not say which shard holds which tensor")
        missing = sorted(set(shards.values()) - names)
        if missing:
            raise InvalidRequest(f"{index.name} names {missing[0][:200]!r}, which is not here")
        indexed = indexed or set(shards.values())
    return indexed


def _tensors(file: Path) -> Iterator[tuple[str, int, int]]:
    """Dtype, number of elements and bytes of each tensor that a safetensors file's header lists."""
    size = file.stat().st_size
    with file.open("rb") as reader:
        if size == 0:
            raise InvalidRequest(f"{file.name} is empty (0 bytes)")
        prefix = reader.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise InvalidRequest(f"{file.name} is not a safetensors file: its header's length is wrong")
        try:
            header = json.loads(reader.read(length))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{file.name} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InvalidRequest(f"{file.name} is not a safetensors file: its header is not an object")
    body = size - 8 - length
    for name, entry in header.items():
        if name != "__metadata__":
            yield _tensor(file.name, name, entry, body)


def _tensor(file: str, name: str, entry: Any, body: int) -> tuple[str, int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            sane = all(type(part) is int and 0 <= part <= MAX_DIMENSION for part in shape)
            if sane and 0 <= begin <= end <= body:
                return dtype, math.prod(shape), end - begin
    raise InvalidRequest(
        f"{file}: the header's entry of tensor {name[:100]!r} is wrong, or the file is cut short"
    )


def _number(config: dict[str, Any], *names: str) -> int | None:
    """The first of these fields that is set; a positive whole number."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or not 0 < value <= MAX_DIMENSION:
            raise InvalidRequest(f"config.json: {name} is {str(value)[:50]!r}, not a positive whole number")
        return value
    return None


def _architecture(config: dict[str, Any]) -> str:
    match config.get("architectures"):
        case [str(name), *_]:
            return name
    raise InvalidRequest("config.json: architectures does not name a model class")


def _quantization(config: dict[str, Any]) -> str | None:
    match config.get("quantization_config"):
        case {"quant_method": str(method)}:
            return method
        case None:
            return None
    raise InvalidRequest("config.json: quantization_config does not name its quant_method")
