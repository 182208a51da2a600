"""What a process has of pages, asked of the kernel."""

from __future__ import annotations

import ctypes
import mmap
from types import SimpleNamespace

from inference.engine.footprint import Footprint, packed_bytes, resident_bytes, spans

PAGES = 64


class Storage:
    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size

    def data_ptr(self) -> int:
        return self.address

    def nbytes(self) -> int:
        return self.size


class Tensor:
    def __init__(self, address: int, size: int) -> None:
        self.storage = Storage(address, size)

    def untyped_storage(self) -> Storage:
        return self.storage


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_memory_is_resident_from_its_first_write_on() -> None:
    memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    whole = [(address_of(memory), len(memory))]
    assert resident_bytes(whole) == 0

    for page in range(10):
        memory[page * mmap.PAGESIZE] = 1

    assert resident_bytes(whole) == 10 * mmap.PAGESIZE
    assert resident_bytes([]) == 0


def test_shared_memory_counts_once() -> None:
    tied, other = Tensor(4096, 100), Tensor(8192, 50)
    assert sorted(spans([tied, [other, (Tensor(4096, 100),)]])) == [(4096, 100), (8192, 50)]


def test_weights_in_a_kernels_own_layout_are_counted() -> None:
    def packed(handler: object) -> object:
        return lambda: handler

    def linear(**fields: object) -> SimpleNamespace:
        weight = SimpleNamespace(itemsize=2, numel=lambda: 0)
        return SimpleNamespace(**{"weight": weight, "cpu_linear": packed(1), **fields})

    gone = linear(input_size_per_partition=8, output_size_per_partition=3)
    replicated = linear(input_size=5, output_size=2)
    kept = linear(weight=SimpleNamespace(itemsize=4, numel=lambda: 10))
    plain = linear(cpu_linear=len)
    model = SimpleNamespace(modules=lambda: [gone, replicated, kept, plain, SimpleNamespace()])

    assert packed_bytes(model) == 2 * 8 * 3 + 2 * 5 * 2 + 4 * 10


def test_a_batch_counts_from_the_load_on() -> None:
    import os

    found = Footprint([{"pid": os.getpid(), "weights": 1000, "kv_cache": 0, "spans": [], "resident": 0}])
    before = found.look()
    assert before["weights"] == 1000
    assert before["runtime"] > 2**20

    batch = bytearray(b"x" * (64 * 2**20))
    after = found.look()
    assert after["activations"] > 60 * 2**20
    assert after["runtime"] == before["runtime"]
    del batch
    assert found.look()["activations"] >= after["activations"], "the peak stays"


def test_a_drafts_weights_are_a_part_of_their_own() -> None:
    import os

    worker = {"pid": 1, "weights": 100, "draft_weights": 30, "kv_cache": 50, "peak": 200, "process": 290}
    assert Footprint([worker]).look() == {
        "weights": 100,
        "draft_weights": 30,
        "kv_cache": 50,
        "activations": 20,
        "runtime": 90,
    }
    on_cpu = {"pid": os.getpid(), "weights": 0, "kv_cache": 0, "spans": [], "resident": 0}
    plain = Footprint([on_cpu]).parts()
    drafted = Footprint([{**on_cpu, "draft_weights": 2**24}]).parts()
    assert abs(plain["runtime"] - drafted["runtime"] - 2**24) < 2**22


def test_on_a_gpu_the_parts_are_the_process_of_that_gpu() -> None:
    worker = {"pid": 1, "weights": 100, "kv_cache": 50, "peak": 170, "process": 260}
    assert Footprint([worker]).look() == {"weights": 100, "kv_cache": 50, "activations": 20, "runtime": 90}
