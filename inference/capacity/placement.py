"""Where a replica goes: filters with reasons, then a score. Pure.

Of the devices that can hold it, in this order: those whose node has its files already; then by strategy the one with
most room (spread: what fails takes little with it) or with least (pack: large rooms stay whole for large models); then
the first by id. Tensor parallel takes several devices of one kind on one node: NCCL between nodes, or between unlike
GPUs, would make each step wait for its slowest part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference.capacity.abilities import LIMITED, what_it_can
from inference.capacity.estimate import gib

SPREAD, PACK = "spread", "pack"
STRATEGIES = (SPREAD, PACK)
NO_NODE = "no node is running: start one with `manage.py node`"


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """A device with what is reserved on it now."""

    id: int
    name: str  # node/device
    budget_bytes: int
    reserved_bytes: int
    alive: bool  # its node reported lately
    node: str = ""
    kind: str = "cpu"
    used_by_others_bytes: int = 0
    abilities: Mapping[str, Any] = field(default_factory=dict)
    files: frozenset[str] = frozenset()  # in its node's cache
    # What can be given away; negative where nothing can. Kept, for the search looks at nothing else of most rooms.
    left_bytes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        left = self.budget_bytes - self.used_by_others_bytes - self.reserved_bytes
        object.__setattr__(self, "left_bytes", left if self.alive else -1)

    @property
    def free_bytes(self) -> int:
        return max(0, self.budget_bytes - self.used_by_others_bytes - self.reserved_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one replica asks for."""

    bytes: int  # on each of its devices
    by_kind: Mapping[str, int] = field(default_factory=dict)  # where a kind of device takes something else
    devices: int = 1
    strategy: str = SPREAD
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # those that devices differ in: abilities.LIMITED
    files: str = ""  # their name in a node's cache

    def on(self, room: DeviceRoom) -> int:
        """Bytes on this device."""
        return self.by_kind.get(room.kind, self.bytes)

    @property
    def least_bytes(self) -> int:
        """On any kind of device."""
        return min(self.bytes, *self.by_kind.values()) if self.by_kind else self.bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """The devices chosen; or none, and why not on each of them."""

    device_ids: tuple[int, ...]
    reasons: tuple[str, ...] = ()

    @property
    def device_id(self) -> int | None:
        """The first one."""
        return self.device_ids[0] if self.device_ids else None


def place(need: Need, rooms: Sequence[DeviceRoom]) -> Placement:
    """Choose for one replica."""
    chosen = _best_group(need, rooms) if need.devices > 1 else _best(need, rooms)
    # Words cost more than the search: they are made only for what was refused everywhere.
    return Placement(chosen) if chosen else Placement((), refusals(need, rooms))


def refusals(need: Need, rooms: Sequence[DeviceRoom]) -> tuple[str, ...]:
    """Why not, of each device, or each node's devices of a kind, that cannot have it."""
    if not rooms:
        return (NO_NODE,)
    if need.devices == 1:
        return tuple(why for room in rooms if (why := refusal(need, room)) is not None)
    found = []
    for (node, kind), members in _groups(rooms).items():
        fitting = sum(refusal(need, room) is None for room in members)
        if fitting < need.devices:
            found.append(_too_few(need, node, kind, members, fitting))
    return tuple(found)


def refusal(need: Need, room: DeviceRoom) -> str | None:
    """Why this device is not for it, or None."""
    if not room.alive:
        return f"{room.name}: its node is not running"
    for name, value in _asked(need):
        if (can := what_it_can(room.abilities, name, value)) is not None:
            return f"{room.name}: {name.replace('_', ' ')} {value} is not possible there ({can})"
    needed = need.on(room)
    if room.left_bytes < needed:
        others = (
            f", of which others use {gib(room.used_by_others_bytes)}" if room.used_by_others_bytes else ""
        )
        return (
            f"{room.name}: needs {gib(needed)}, {gib(room.free_bytes)} free "
            f"of a budget of {gib(room.budget_bytes)}{others}"
        )
    return None


def _best(need: Need, rooms: Sequence[DeviceRoom]) -> tuple[int, ...]:
    """One device. Most rooms cost one comparison; what takes longer is asked only of one that would be better."""
    best: DeviceRoom | None = None
    best_here, best_value = False, 0
    least, files, pack, asked = need.least_bytes, need.files, need.strategy == PACK, _asked(need)
    for room in rooms:
        left = room.left_bytes
        if left < least:
            continue
        here = files in room.files
        value = -left if pack else left
        if best is not None:
            if here < best_here:
                continue
            if here == best_here and (value < best_value or (value == best_value and room.id > best.id)):
                continue
        if left >= need.on(room) and _is_able(room, asked):
            best, best_here, best_value = room, here, value
    return () if best is None else (best.id,)


def _best_group(need: Need, rooms: Sequence[DeviceRoom]) -> tuple[int, ...]:
    """Several devices of one kind on one node: of each such group the best that fit, and the best group."""
    best: list[DeviceRoom] = []
    best_score: tuple[bool, int, int] = (False, 0, 0)
    asked, sign = _asked(need), -1 if need.strategy == PACK else 1
    for members in _groups(rooms).values():
        needed = need.on(members[0])
        fitting = [room for room in members if room.left_bytes >= needed and _is_able(room, asked)]
        if len(fitting) < need.devices:
            continue
        fitting.sort(key=lambda room: (-sign * room.left_bytes, room.id))
        chosen = fitting[: need.devices]
        lowest = min(room.id for room in chosen)
        # The last one has the least room (spread) or the most (pack) of those chosen.
        score = (need.files in chosen[0].files, sign * chosen[-1].left_bytes, -lowest)
        if not best or score > best_score:
            best, best_score = chosen, score
    return tuple(sorted(room.id for room in best))


def _groups(rooms: Sequence[DeviceRoom]) -> dict[tuple[str, str], list[DeviceRoom]]:
    groups: dict[tuple[str, str], list[DeviceRoom]] = defaultdict(list)
    for room in rooms:
        groups[room.node, room.kind].append(room)
    return groups


def _asked(need: Need) -> list[tuple[str, Any]]:
    """The options that not every device can do."""
    return [(name, value) for name in LIMITED if (value := need.options.get(name)) and value != 1]


def _is_able(room: DeviceRoom, asked: Sequence[tuple[str, Any]]) -> bool:
    return all(what_it_can(room.abilities, name, value) is None for name, value in asked)


def _too_few(need: Need, node: str, kind: str, members: Sequence[DeviceRoom], fitting: int) -> str:
    why = "; ".join(found for room in members if (found := refusal(need, room)) is not None)
    have = f"{fitting} of {len(members)}" if fitting < len(members) else str(fitting)
    found = f"{node}: needs {need.devices} devices of one kind, has {have} of {kind}"
    return f"{found} ({why})" if why else found
