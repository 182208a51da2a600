"""The line at the door, with a gateway that is not ready: nobody is refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from inference.gateway import door as module
from inference.gateway.door import AT_ONCE, PATIENCE_S, POURING_PER_S, Door
from inference.gateway.fullness import Fullness

ASK = b'POST /v1/completions HTTP/1.1\r\nauthorization: Bearer k\r\ncontent-length: 13\r\n\r\n{"model":"a"}'


@dataclass(eq=False)
class Caller:
    name: int
    taken: list[tuple[int, bytes]]
    gone: bool = False
    told: list[bytes] = field(default_factory=list)

    def take_up(self, data: bytes) -> None:
        self.taken.append((self.name, data))

    def tell(self, answer: bytes) -> None:
        self.told.append(answer)

    def is_gone(self) -> bool:
        return self.gone


@pytest.fixture
def taken() -> list[tuple[int, bytes]]:
    return []


@pytest.fixture
def door() -> Door:
    runtime: Any = SimpleNamespace(is_ready=False, admission=SimpleNamespace(fullness=Fullness()))
    return Door(runtime)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_few_are_taken_up_in_each_turn_in_the_order_in_which_they_came(door, taken):
    for name in range(2 * AT_ONCE + 1):
        door.came(Caller(name, taken), ASK)
    assert [name for name, _ in taken] == list(range(AT_ONCE))
    await turns(1)
    assert [name for name, _ in taken] == list(range(2 * AT_ONCE))
    # One who comes now is not before those in line.
    door.came(Caller(99, taken), ASK)
    await turns(2)
    assert [name for name, _ in taken] == [*range(2 * AT_ONCE + 1), 99]


async def test_while_they_pour_in_to_look_at_them_comes_first(taken):
    now = 0.0
    runtime: Any = SimpleNamespace(is_ready=False, admission=SimpleNamespace(fullness=Fullness()))
    door = Door(runtime, clock=lambda: now)
    for expected in (AT_ONCE + 1, AT_ONCE + 1, AT_ONCE + 2):
        for name in range(int(POURING_PER_S * PATIENCE_S)):
            door.came(Caller(name, taken), ASK)
        await turns(1)
        assert len(taken) == expected
        now += 0.6 * PATIENCE_S
    now += PATIENCE_S
    await turns(1)
    assert len(taken) == 2 * AT_ONCE + 2


async def test_what_is_no_whole_request_for_a_completion_does_not_wait(door, taken):
    for name in range(AT_ONCE + 1):
        door.came(Caller(name, taken), ASK)
    for data in (b"GET /healthz HTTP/1.1\r\n\r\n", ASK[:-1]):
        assert door.came(Caller(50, taken), data) is None
        assert taken[-1] == (50, data)


async def test_one_who_left_is_not_taken_up_and_takes_nobodys_turn(door, taken):
    callers = [Caller(name, taken) for name in range(3 * AT_ONCE)]
    for caller in callers:
        door.came(caller, ASK)
    for caller in callers[AT_ONCE : 2 * AT_ONCE]:
        caller.gone = True
    await turns(1)
    assert [name for name, _ in taken] == [*range(AT_ONCE), *range(2 * AT_ONCE, 3 * AT_ONCE)]


async def test_what_one_in_line_sends_on_comes_after_its_request(door, taken):
    for name in range(AT_ONCE):
        door.came(Caller(name, taken), ASK)
    waiting = door.came(Caller(7, taken), ASK)
    assert waiting is not None
    door.more(waiting, b"POST")
    await turns(1)
    assert taken[-1] == (7, ASK + b"POST")


async def test_a_line_that_holds_too_much_memory_lets_the_next_ones_pass(door, taken, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 2 * len(ASK))
    for name in range(AT_ONCE):
        door.came(Caller(name, taken), ASK)
    waiting = door.came(Caller(7, taken), ASK)
    assert waiting is not None
    door.came(Caller(8, taken), ASK)
    door.more(waiting, b"more")
    assert taken[-1] == (7, ASK + b"more")
    await turns(2)
    assert [name for name, _ in taken] == [*range(AT_ONCE), 7, 8]
