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
    best: DeviceRoom | None = None
    most = needed_bytes - 1
    for device in devices:
        free = device.budget_bytes - device.reserved_bytes
        if device.alive and (free > most or (best is not None and free == most and device.id < best.id)):
            best, most = device, free
    # Words cost more than the search: they are made for those that were refused only.
    reasons = tuple(why for device in devices if (why := _refusal(device, needed_bytes)) is not None)
    if best is None:
        return Placement(None, reasons or ("no node is running: start one with `manage.py node`",))
    return Placement(best.id, reasons)


def _refusal(device: DeviceRoom, needed_bytes: int) -> str | None:
    if not device.alive:
        return f"{device.name}: its node is not running"
    if device.budget_bytes - device.reserved_bytes < needed_bytes:
        return (
            f"{device.name}: needs {gib(needed_bytes)}, {gib(device.free_bytes)} free "
            f"of a budget of {gib(device.budget_bytes)}"
        )
    return None
