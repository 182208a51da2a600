"""What others take of GPUs and of host memory; NVML is a stand-in with the real one's names and signatures."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from inference.capacity.estimate import GIB
from inference.node import devices, hostmemory, usage
from inference.node.devices import LocalDevice, abilities_of, local_devices
from inference.node.hostmemory import host_memory
from inference.node.usage import OwnEngine, Usage, host_usage

ME = os.getpid()


@dataclass
class Gpu:
    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    used: int = 0
    reserved: int = GIB  # by the driver
    capability: tuple[int, int] = (9, 0)
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    lost: bool = False


class FakeNvml:
    """`pynvml` over these GPUs."""

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2  # noqa: N815

    def __init__(self, *gpus: Gpu, old_driver: bool = False) -> None:
        self.gpus, self.old_driver, self.users = gpus, old_driver, 0

    def nvmlInit(self) -> None:
        if not self.gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.users += 1

    def nvmlShutdown(self) -> None:
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        assert self.users == 1, "NVML was not initialised"
        if self.gpus[index].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[index]

    def nvmlDeviceGetMemoryInfo(self, handle: Gpu, version: int | None = None) -> Any:
        if version is None:
            return SimpleNamespace(total=handle.total, used=handle.used + handle.reserved)
        if self.old_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=handle.total, used=handle.used, reserved=handle.reserved)

    def nvmlDeviceGetName(self, handle: Gpu) -> str:
        return handle.name

    def nvmlDeviceGetCudaComputeCapability(self, handle: Gpu) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Gpu) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.processes]


Machine = Callable[..., list[LocalDevice]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with these GPUs; its devices."""

    def made(*gpus: Gpu, **how: Any) -> list[LocalDevice]:
        fake = FakeNvml(*gpus, **how)
        monkeypatch.setattr(devices, "pynvml", fake)
        monkeypatch.setattr(usage, "pynvml", fake)
        return local_devices()

    return made


def test_the_stand_in_has_nvmls_own_signatures() -> None:
    names = [name for name in vars(FakeNvml) if name.startswith("nvml") and callable(getattr(FakeNvml, name))]
    assert len(names) == 8
    for name in names:
        real = list(inspect.signature(getattr(pynvml, name)).parameters)
        ours = list(inspect.signature(getattr(FakeNvml, name)).parameters)[1:]
        assert ours == real[: len(ours)], name


def test_devices_are_gpus_where_there_are_any_else_host_memory(machine: Machine) -> None:
    found = machine(Gpu(), Gpu(), Gpu(name="NVIDIA L4", total=24 * GIB, capability=(8, 9)))

    assert [device.name for device in found] == ["gpu:0", "gpu:1", "gpu:2"]
    assert [abilities_of(device, found)["tensor_parallel"] for device in found] == [2, 2, 1]
    assert [device.name for device in machine()] == ["cpu:0"]


def test_a_node_offers_only_the_gpus_that_it_may_see(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    found = machine(Gpu(), Gpu(), Gpu(name="NVIDIA L4"))
    assert [(device.name, device.kind) for device in found] == [
        ("gpu:0", "NVIDIA H100 80GB HBM3"),
        ("gpu:2", "NVIDIA L4"),
    ]


def test_what_others_have_of_a_gpu_is_what_is_used_less_our_own(machine: Machine) -> None:
    found = machine(
        Gpu(used=30 * GIB, processes=[(ME, 20 * GIB), (1, 9 * GIB)]), Gpu(used=2 * GIB, processes=[(1, None)])
    )
    engine = OwnEngine(pid=ME, devices=frozenset({"gpu:0"}), bytes=19 * GIB)

    assert usage.usage(found, [engine]) == {
        "gpu:0": Usage(
            used_bytes=30 * GIB, used_by_others_bytes=10 * GIB, processes={ME: 20 * GIB, 1: 9 * GIB}
        ),
        # Another user's process is there, and what it has is not told.
        "gpu:1": Usage(used_bytes=2 * GIB, used_by_others_bytes=2 * GIB, processes={1: 0}),
    }


def test_an_engines_children_are_its_own(machine: Machine) -> None:
    parent = psutil.Process(ME).ppid()
    found = machine(Gpu(used=30 * GIB, processes=[(ME, 20 * GIB)]))
    engine = OwnEngine(pid=parent, devices=frozenset({"gpu:0"}))

    assert usage.usage(found, [engine])["gpu:0"].used_by_others_bytes == 10 * GIB


def test_in_another_pid_namespace_what_engines_say_counts(machine: Machine) -> None:
    found = machine(Gpu(used=30 * GIB, processes=[(4_000_001, 20 * GIB), (4_000_002, 10 * GIB)]))
    ready = OwnEngine(pid=ME, devices=frozenset({"gpu:0"}), bytes=20 * GIB)
    loading = OwnEngine(pid=ME, devices=frozenset({"gpu:0"}))

    assert usage.usage(found, [ready])["gpu:0"].used_by_others_bytes == 10 * GIB
    assert usage.usage(found, [loading])["gpu:0"].used_by_others_bytes == 30 * GIB


def test_a_driver_that_tells_less_is_believed_as_it_is(machine: Machine) -> None:
    found = machine(Gpu(used=3 * GIB, reserved=GIB), old_driver=True)
    assert usage.usage(found, [])["gpu:0"].used_bytes == 4 * GIB


def test_a_gpu_that_is_lost_hides_no_other(machine: Machine) -> None:
    gpus = Gpu(), Gpu(used=GIB)
    found = machine(*gpus)
    gpus[0].lost = True
    assert list(usage.usage(found, [])) == ["gpu:1"]


HOST = LocalDevice("cpu:0", "cpu", total_bytes=64 * GIB, budget_bytes=48 * GIB)


@pytest.mark.parametrize(
    ("available", "own", "others"),
    [
        (60 * GIB, 0, 0),
        (48 * GIB, 0, 0),
        (30 * GIB, 0, 18 * GIB),
        # Our own 20 GiB are part of what is gone: 28 GiB are still promised, and there.
        (28 * GIB, 20 * GIB, 0),
        (8 * GIB, 20 * GIB, 20 * GIB),
        # Above its budget already: nothing more is promised.
        (1 * GIB, 50 * GIB, 0),
    ],
)
def test_a_host_budget_stands_unless_less_is_left_than_it_promises(
    available: int, own: int, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "host_memory", lambda: (64 * GIB, available))
    engine = OwnEngine(pid=ME, devices=frozenset({"cpu:0"}), bytes=own)

    found = host_usage(HOST, [engine])

    assert found == Usage(used_bytes=64 * GIB - available, used_by_others_bytes=others, processes={ME: own})


def test_an_engine_that_loads_is_looked_at_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "host_memory", lambda: (64 * GIB, 40 * GIB))
    loading = "written = b'x' * 2**28; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", loading], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        engine = OwnEngine(pid=child.pid, devices=frozenset({"cpu:0"}))
        gone = OwnEngine(pid=4_000_001, devices=frozenset({"cpu:0"}))
        others = host_usage(HOST, [engine, gone]).used_by_others_bytes
        child.communicate(b"\n")

    assert 7 * GIB < others < 8 * GIB - 2**28, "8 GiB too few, less what the engine has written"


def test_a_containers_limit_is_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hostmemory, "CGROUP", tmp_path)
    machine = psutil.virtual_memory().total
    assert host_memory()[0] == machine

    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{2**28}\n")
    assert host_memory()[0] == machine

    (tmp_path / "memory.max").write_text(f"{2**29}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**27}\n")
    assert host_memory() == (2**29, 2**29 - 2**28 + 2**27)
