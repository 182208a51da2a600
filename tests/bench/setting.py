"""What every benchmark is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A folder for logs and data that lasts for one run, and whether to be quick about it."""

    work: Path
    quick: bool
