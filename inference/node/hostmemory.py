"""Host memory as this process may have it: the machine's, or its container's."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def host_memory() -> tuple[int, int]:
    """Total and available bytes: the machine's, or of this container's limit where that is less."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _cgroup("memory.max")
    current = _cgroup("memory.current")
    if limit is not None and current is not None and limit < total:
        # Cached files go when their pages are needed.
        total, available = limit, min(available, max(0, limit - current + _cached_files()))
    return total, available


def _cgroup(name: str) -> int | None:
    """A figure of this container's memory controller (cgroup v2); None without one, or without a limit."""
    try:
        text = (CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cached_files() -> int:
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
