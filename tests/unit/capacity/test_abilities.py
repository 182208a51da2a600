"""What a device can do, and what is said of what it cannot."""

from __future__ import annotations

import pytest

from inference.capacity.abilities import LADDER, abilities, what_it_can


def test_a_cpu_has_three_rungs_and_what_was_tried_on_it() -> None:
    found = abilities("cpu")
    assert found["ladder"] == ["serving", "stopped", "remote"]
    assert "fp8_per_block" not in found["quantization"]
    assert "fp8_per_block" in abilities("cpu", amx=True)["quantization"]
    assert found["tensor_parallel"] == 1


@pytest.mark.parametrize(
    ("capability", "has", "lacks"),
    [((8, 0), "int8_per_channel_weight_only", "fp8_per_tensor"), ((9, 0), "fp8_per_block", "mxfp8")],
)
def test_a_gpu_has_the_kernels_of_its_generation(capability: tuple[int, int], has: str, lacks: str) -> None:
    found = abilities("NVIDIA", compute_capability=capability, alike_on_node=8)
    assert found["ladder"] == list(LADDER)
    assert has in found["quantization"]
    assert lacks not in found["quantization"]
    assert found["tensor_parallel"] == 8


def test_a_refusal_lists_what_it_can() -> None:
    cpu = abilities("cpu", amx=True)
    assert (
        what_it_can(cpu, "quantization", "mxfp8")
        == "int8_per_channel_weight_only, fp8_per_channel, fp8_per_block"
    )
    assert what_it_can(cpu, "quantization", "fp8_per_block") is None
    assert what_it_can(cpu, "quantization", "") is None
    assert what_it_can(cpu, "tensor_parallel", 4) == "at most 1"
    assert what_it_can({}, "quantization", "mxfp8") is None
