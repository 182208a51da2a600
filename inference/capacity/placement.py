"""Where a replica goes: filters with reasons, then the device with most room (spread)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inference.capacity.estimate import gib


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """A device with what is reserved on it now."""

    id: int
    name: str  # node/device
    budget_bytes: int
    reserved_bytes: int
    alive: bool  # its node reported lately

    @property
    def free_bytes(self) -> int:
        return max(0, self.budget_bytes - self.reserved_bytes)


@dataclass(frozen=True, slots=True)
class Placement:
    """The device chosen, or None with a reason for each device."""

    device_id: int | None
    reasons: tuple[str, ...]


def place(needed_bytes: int, devices: Sequence[DeviceRoom]) -> Placement:
    """Choose the live device with most free memory that holds `needed_bytes`."""
    reasons = []
    fitting = []
    for device in devices:
        if not device.alive:
            reasons.append(f"{device.name}: its node is not running")
        elif device.free_bytes < needed_bytes:
            reasons.append(
                f"{device.name}: needs {gib(needed_bytes)}, {gib(device.free_bytes)} free "
                f"of a budget of {gib(device.budget_bytes)}"
            )
        else:
            fitting.append(device)
    if not fitting:
        return Placement(None, tuple(reasons) or ("no node is running: start one with `manage.py node`",))
    best = max(fitting, key=lambda device: (device.free_bytes, -device.id))
    return Placement(best.id, tuple(reasons))
