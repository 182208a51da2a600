"""KV cache and weights of well-known architectures from their configs, against published figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.capacity.estimate import GIB, activation_bytes, estimate, kv_cost, weight_bytes, weight_share
from inference.capacity.placement import DeviceRoom
from inference.capacity.whatif import what_if
from registry.facts import read_facts
from tests.checkpoints import write_checkpoint


def llama(layers: int, hidden: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        **more,
    }


# config, KV bytes a token in bf16 before any window is full, where the figure stands
PUBLISHED: dict[str, tuple[dict[str, Any], int, str]] = {
    "Llama-2-7B": (
        llama(32, 4096, 32, 32),
        524_288,
        "about 2 GB for 4,096 tokens (NVIDIA, Mastering LLM Techniques: Inference Optimization)",
    ),
    "Llama-3.1-8B": (
        llama(32, 4096, 32, 8),
        131_072,
        "15.62 GB at 128k tokens (Hugging Face, Llama 3.1 blog, KV cache table)",
    ),
    "Llama-3.1-70B": (
        llama(80, 8192, 64, 8),
        327_680,
        "39.06 GB at 128k tokens (Hugging Face, Llama 3.1 blog, KV cache table)",
    ),
    "Llama-3.1-405B": (
        llama(126, 16384, 128, 8),
        516_096,
        "516.096 KB (Insights into DeepSeek-V3, ISCA 2025, table 1)",
    ),
    "Falcon-7B": (
        llama(32, 4544, 71, 1, head_dim=64),
        8_192,
        "multi-query: one KV head of 64 in 32 layers (Falcon series, Almazrouei 2023)",
    ),
    "Qwen2.5-72B": (llama(80, 8192, 64, 8), 327_680, "327.680 KB (Insights into DeepSeek-V3, table 1)"),
    "DeepSeek-V3": (
        llama(61, 7168, 128, 128, kv_lora_rank=512, qk_rope_head_dim=64),
        70_272,
        "70.272 KB (Insights into DeepSeek-V3, table 1)",
    ),
    "Mistral-7B-v0.1": (
        llama(32, 4096, 32, 8, sliding_window=4096),
        131_072,
        "8 KV heads of 128 in 32 layers, window 4096 (Mistral 7B, Jiang 2023, table 1)",
    ),
    "Mixtral-8x7B": (
        llama(32, 4096, 32, 8, num_local_experts=8, sliding_window=None),
        131_072,
        "the attention of Mistral 7B (Mixtral of Experts, Jiang 2024, table 1)",
    ),
    "OPT-13B": (
        llama(40, 5120, 40, 40),
        819_200,
        '"the KV cache of a single token demands 800 KB" (PagedAttention, Kwon 2023, section 3)',
    ),
    "Gemma-2-9B": (
        llama(42, 3584, 16, 8, head_dim=256, sliding_window=4096, model_type="gemma2"),
        344_064,
        "8 KV heads of 256 in 42 layers, every second with a window of 4096 (Gemma 2, 2024, table 1)",
    ),
    "Gemma-3-27B": (
        llama(62, 5376, 32, 16, head_dim=128, sliding_window=1024, sliding_window_pattern=6),
        507_904,
        "16 KV heads of 128 in 62 layers, five local to one global, window 1024 (Gemma 3, 2025, table 1)",
    ),
    "Jamba-v0.1": (
        llama(32, 4096, 32, 8, attn_layer_period=8, mamba_expand=2, mamba_d_state=16, mamba_d_conv=4),
        16_384,
        "4 GB at 256K tokens (Jamba, Lieber 2024, table 1: 262,144 x 16,384 bytes)",
    ),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_cache_of_a_token_is_what_was_published(name: str, tmp_path: Path) -> None:
    config, published, _source = PUBLISHED[name]
    facts = read_facts(write_checkpoint(tmp_path, config)).as_dict()

    cost = kv_cost(facts)

    assert cost is not None
    assert cost.token_bytes == published


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        # Every layer of Mistral keeps 4,096 tokens at most: half a GiB for ever.
        ("Mistral-7B-v0.1", 100_000, 4096 * 131_072),
        # Jamba: "4 GB" at 256K, and its Mamba layers' states.
        ("Jamba-v0.1", 262_144, 4 * GIB + 28 * (8192 * 16 + 8192 * 3) * 2),
        ("DeepSeek-V3", 131_072, 131_072 * 70_272),
        # 21 layers grow, 21 stop at the window.
        ("Gemma-2-9B", 8192, 21 * 8192 * 8192 + 21 * 8192 * 4096),
        # 10 of 62 layers are global.
        ("Gemma-3-27B", 131_072, 10 * 8192 * 131_072 + 52 * 8192 * 1024),
    ],
)
def test_windows_and_states_bound_a_stream(name: str, tokens: int, expected: int, tmp_path: Path) -> None:
    facts = read_facts(write_checkpoint(tmp_path, PUBLISHED[name][0])).as_dict()
    cost = kv_cost(facts)

    assert cost is not None
    assert cost.stream_bytes(tokens) == expected


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 2), (128, 2), (129, 3), (512, 5)])
def test_the_smallest_cache_has_whole_blocks_and_one_that_vllm_keeps(tokens: int, blocks: int) -> None:
    # SmolLM2 in float32, as tests/integration/engine/test_vllm_priority.py starts it: 4 blocks were refused.
    cost = kv_cost({"layers": 30, "kv_heads": 3, "head_size": 64}, 4.0)

    assert cost is not None
    assert cost.least_bytes(tokens) == blocks * 128 * 46_080


def test_a_pure_state_model_has_no_cache(tmp_path: Path) -> None:
    config = llama(64, 2560, 1, 1, model_type="mamba", intermediate_size=5120, state_size=16, conv_kernel=4)
    cost = kv_cost(read_facts(write_checkpoint(tmp_path, config)).as_dict())

    assert cost is not None
    assert cost.token_bytes == 0
    assert cost.stream_bytes(10) == cost.stream_bytes(10**6) == 64 * (5120 * 16 + 5120 * 3) * 2


EIGHT_B = {
    "parameters": 8_030_261_248,
    "weight_bytes": 16_060_522_496,
    "vocabulary": 128_256,
    "hidden_size": 4096,
    "layers": 32,
    "kv_heads": 8,
    "head_size": 128,
    "context_length": 131_072,
    "tied_embeddings": False,
}


def test_weights_by_dtype_and_quantization() -> None:
    # "16 GB" in bf16, "8 GB" in FP8, "4 GB" in INT4 for 8B (Hugging Face, Llama 3.1 blog); embeddings stay bf16.
    assert weight_bytes(EIGHT_B) == 16_060_522_496
    assert weight_bytes(EIGHT_B, "float32") == 32_121_044_992
    assert weight_bytes(EIGHT_B, quantization="fp8") == pytest.approx(9.15e9, rel=0.02)
    assert weight_bytes(EIGHT_B, quantization="int4") == pytest.approx(6.0e9, rel=0.02)
    tied = {**EIGHT_B, "tied_embeddings": True}
    assert weight_bytes(tied, quantization="fp8") < weight_bytes(EIGHT_B, quantization="fp8")


def test_tensor_parallel_shares_weights_and_what_a_batch_takes_but_not_the_process() -> None:
    one = estimate(facts=EIGHT_B, kv_cache_bytes=GIB, device_kind="gpu")
    four = estimate(facts=EIGHT_B, kv_cache_bytes=GIB, device_kind="gpu", tensor_parallel=4)

    assert four.weights_bytes == -(-one.weights_bytes // 4)
    assert four.activations_bytes < one.activations_bytes
    assert four.context_bytes == one.context_bytes
    assert four.runtime_bytes > one.runtime_bytes, "NCCL has buffers of its own"


# config, devices, KV bytes a token on each of them in bf16, why
SHARED: dict[str, tuple[str, int, int, str]] = {
    "heads are shared": ("Llama-3.1-70B", 8, 327_680 // 8, "one of eight KV heads each"),
    "a head is not cut": ("Llama-3.1-70B", 16, 327_680 // 8, "8 KV heads on 16 GPUs: each is there twice"),
    "one head is everywhere": ("Falcon-7B", 4, 8_192, "multi-query attention has one"),
    "a latent vector is everywhere": ("DeepSeek-V3", 8, 70_272, "vLLM and SGLang replicate MLA's cache"),
    "windows are shared, too": ("Gemma-3-27B", 4, 507_904 // 4, "16 KV heads"),
    "half of Jamba": ("Jamba-v0.1", 2, 16_384 // 2, "8 KV heads"),
}


@pytest.mark.parametrize("case", list(SHARED))
def test_the_cache_of_a_token_on_each_of_several_devices(case: str, tmp_path: Path) -> None:
    name, devices, expected, _why = SHARED[case]
    facts = read_facts(write_checkpoint(tmp_path, PUBLISHED[name][0])).as_dict()

    cost = kv_cost(facts, tensor_parallel=devices)

    assert cost is not None
    assert cost.token_bytes == expected


# parameters by Hugging Face's safetensors index, bytes a parameter, published, where
WEIGHTS: dict[str, tuple[int, float, float, str]] = {
    "Llama-3.1-8B": (8_030_261_248, 2, 16e9, "16 GB in FP16 (Hugging Face, Llama 3.1 blog, memory table)"),
    "Llama-3.1-70B": (70_553_706_496, 2, 140e9, "140 GB in FP16 (the same table)"),
    "Llama-3.1-405B": (405_853_388_800, 2, 810e9, "810 GB in FP16 (the same table)"),
    "Mixtral-8x7B": (46_702_792_704, 2, 93.4e9, "46.7B parameters in all (Mixtral of Experts, 2024)"),
    "Gemma-2-9B": (9_241_705_984, 2, 18.5e9, "9.24B parameters (Gemma 2, 2024, table 2)"),
}


@pytest.mark.parametrize("name", list(WEIGHTS))
@pytest.mark.parametrize("devices", [1, 8])
def test_weights_are_what_was_published_and_are_shared(name: str, devices: int) -> None:
    parameters, size, published, _source = WEIGHTS[name]
    facts = {"parameters": parameters, "weight_bytes": int(parameters * size), "kv_heads": 8}

    found = weight_share(facts, tensor_parallel=devices)

    assert found == pytest.approx(published / devices, rel=0.02)


def test_a_key_head_that_is_on_every_device_makes_the_shares_larger_than_a_share() -> None:
    eight, sixteen = (weight_share(EIGHT_B, tensor_parallel=count) for count in (8, 16))
    a_head = 2 * 32 * 4096 * 128 * 2  # key and value projections of one head, in 32 layers, in bf16

    assert eight == 16_060_522_496 // 8
    assert sixteen == (16_060_522_496 - 8 * a_head) // 16 + a_head


def test_a_larger_batch_takes_more() -> None:
    facts = {**EIGHT_B, "heads": 32, "intermediate_size": 14_336}

    few = activation_bytes(facts, "auto", tokens=2048, streams=1)
    many = activation_bytes(facts, "auto", tokens=8192, streams=1)

    # A layer of Llama 3.1 8B: 4 x 4096 of the hidden state, 48 heads of 128, 3 x 14336, in bf16.
    a_token = 2 * (4 * 4096 + 48 * 128 + 3 * 14_336)
    assert many - few == 6144 * a_token
    assert activation_bytes(facts, "auto", tokens=2048, streams=65) - few == 64 * 12 * 128_256


def test_what_if_says_parts_streams_and_where() -> None:
    rooms = [
        DeviceRoom(1, "n/gpu:0", 24 * GIB, 0, True, node="n", kind="L4"),
        DeviceRoom(2, "n/gpu:1", 80 * GIB, 70 * GIB, True, node="n", kind="H100"),
    ]

    found = what_if(EIGHT_B, rooms, context_length=8192, streams=4)
    assert (found.token_bytes, found.stream_bytes, found.streams) == (131_072, GIB, 4)
    assert (found.fits, found.devices) == (True, ("n/gpu:0",))
    assert sum(found.estimate.parts().values()) == found.estimate.total_bytes
    first, second = found.on
    assert (first.fits, second.fits) == (True, False)
    # What is free beside all but the cache, in streams of a GiB.
    without_cache = found.estimate.total_bytes - 4 * GIB
    assert first.streams == (24 * GIB - without_cache) // GIB
    assert second.streams == 0
    assert second.reason is not None

    more = what_if(EIGHT_B, rooms, streams=2)
    assert (more.fits, more.fits_when_empty) == (False, True)
    assert len(more.reasons) == 2
    assert what_if(EIGHT_B, rooms, streams=8).fits_when_empty is False


def test_what_if_over_several_gpus_counts_what_each_of_them_has() -> None:
    rooms = [DeviceRoom(n, f"n/gpu:{n}", 24 * GIB, 0, True, node="n", kind="L4") for n in range(3)]

    found = what_if(EIGHT_B, rooms, context_length=8192, streams=4, tensor_parallel=2)

    assert found.stream_bytes == GIB // 2
    assert found.devices == ("n/gpu:0", "n/gpu:1")
    assert found.estimate.kv_cache_bytes == 2 * GIB


def test_what_if_is_corrected_by_kind_of_device() -> None:
    rooms = [DeviceRoom(1, "n/gpu:0", 24 * GIB, 0, True, node="n", kind="L4")]
    found = what_if(
        EIGHT_B, rooms, context_length=8192, correct=lambda one, kind: replace(one, runtime_bytes=len(kind))
    )
    assert found.estimate.runtime_bytes == 2


SMALL = {**EIGHT_B, "layers": 16, "hidden_size": 2048, "parameters": 10**9, "weight_bytes": 4 * 10**9}


@pytest.mark.parametrize(("dtype", "a_weight"), [("float32", 4), ("bfloat16", 2), ("auto", 2)])
def test_a_draft_is_a_second_model_in_its_targets_dtype_that_is_never_quantized_on_load(
    dtype: str, a_weight: int
) -> None:
    options: dict[str, Any] = {
        "facts": EIGHT_B,
        "dtype": dtype,
        "kv_cache_bytes": GIB,
        "device_kind": "L4",
        "quantization": "fp8_per_block",
    }
    alone, both = estimate(**options), estimate(**options, draft={**SMALL, "dtype": "float32"})

    assert both.draft_weights_bytes == a_weight * 10**9
    assert both.weights_bytes == alone.weights_bytes
    assert both.kv_cache_bytes == alone.kv_cache_bytes
    assert both.activations_bytes == alone.activations_bytes, "one of them steps after the other"
    assert both.cuda_graphs_bytes * EIGHT_B["layers"] == alone.cuda_graphs_bytes * (EIGHT_B["layers"] + 16)
    on_cpu = estimate(**{**options, "device_kind": "cpu"}, draft=SMALL)
    assert on_cpu.draft_weights_bytes == a_weight * (10**9 + SMALL["vocabulary"] * 2048)


def test_what_is_guessed_has_logits_of_its_own_by_whatever_method() -> None:
    options: dict[str, Any] = {"facts": EIGHT_B, "kv_cache_bytes": GIB, "max_streams": 16}
    alone, guessed = estimate(**options), estimate(**options, speculative_tokens=3)
    assert guessed.activations_bytes - alone.activations_bytes == 3 * 16 * 40 * EIGHT_B["vocabulary"]


def test_the_cache_holds_less_where_a_draft_keeps_its_keys_in_it() -> None:
    alone, both = kv_cost(EIGHT_B), kv_cost(EIGHT_B, draft=SMALL)
    assert alone is not None
    assert both is not None
    assert both.token_bytes == alone.token_bytes * (EIGHT_B["layers"] + 16) // EIGHT_B["layers"]
    assert both.stream_bytes(1000) == 1000 * both.token_bytes
    assert both.least_bytes(1000) == 9 * 128 * both.token_bytes
    assert kv_cost(EIGHT_B, draft={}) is None
    rooms = [DeviceRoom(1, "n/gpu:0", 80 * GIB, 0, True, node="n", kind="H100")]
    asked: dict[str, Any] = {"context_length": 8192, "kv_cache_bytes": 6 * GIB}
    assert what_if(EIGHT_B, rooms, **asked).streams == 6
    assert what_if(EIGHT_B, rooms, **asked, draft=SMALL).streams == 4


def test_in_smollm2_its_own_draft_takes_half_of_the_cache() -> None:
    """As vLLM 0.32 on a CPU refused one byte less, in float32 with a context of 256."""
    facts = {"layers": 30, "kv_heads": 3, "head_size": 64}
    both = kv_cost(facts, 4.0, draft=facts)
    assert both is not None
    assert both.least_bytes(256) == 35_389_440


@given(
    layers=st.integers(1, 200),
    kv=st.integers(1, 64),
    head=st.integers(1, 512),
    window=st.none() | st.integers(1, 10_000),
    tokens=st.integers(1, 10**6),
)
def test_a_stream_never_shrinks_and_a_window_never_costs_more(
    layers: int, kv: int, head: int, window: int | None, tokens: int
) -> None:
    facts = {"layers": layers, "kv_heads": kv, "head_size": head}
    plain, windowed = kv_cost(facts), kv_cost({**facts, "sliding_window": window})

    assert plain is not None
    assert windowed is not None
    assert windowed.stream_bytes(tokens) <= plain.stream_bytes(tokens)
    assert windowed.stream_bytes(tokens) <= windowed.stream_bytes(tokens + 1)


@given(
    layers=st.integers(1, 100),
    kv=st.integers(1, 64),
    heads=st.integers(1, 64),
    latent=st.none() | st.integers(1, 1024),
    state=st.integers(0, 10_000),
    devices=st.sampled_from([1, 2, 4, 8]),
)
def test_shares_together_are_never_less_than_the_whole_and_none_is_more(
    layers: int, kv: int, heads: int, latent: int | None, state: int, devices: int
) -> None:
    facts = {
        "layers": layers,
        "kv_heads": kv,
        "head_size": heads,
        "hidden_size": 64,
        "kv_lora_rank": latent,
        "recurrent_layers": layers // 2,
        "state_size": state,
        "parameters": 10**8 * layers,
        "weight_bytes": 2 * 10**8 * layers,
    }
    whole, share = kv_cost(facts), kv_cost(facts, tensor_parallel=devices)

    assert whole is not None
    assert share is not None
    assert share.stream_bytes(1000) <= whole.stream_bytes(1000) <= devices * share.stream_bytes(1000)
    weights, part = weight_share(facts), weight_share(facts, tensor_parallel=devices)
    assert part <= weights <= devices * part + devices
