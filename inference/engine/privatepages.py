"""What a process takes of host memory, as engines are measured and as the node sees them while they load."""

from __future__ import annotations

import re
from pathlib import Path

_WRITTEN = re.compile(r"^(?:Private_Dirty|Private_Hugetlb|Swap): +(\d+) kB", re.MULTILINE)


def private_bytes(pid: int) -> int:
    """What a process alone has written: a library's pages can be had again, and count now for one and now for two.

    Raises OSError of a process that is gone or another user's.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(size) for size in _WRITTEN.findall(rollup))
