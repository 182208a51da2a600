"""Keyed hashes: the same request always draws the same lot, and another key draws independently."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from routing.core.live import Floats

Hashes = npt.NDArray[np.uint64]

_SHIFTS = tuple(np.uint64(bits) for bits in (30, 27, 31, 11))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_UNIT = 2.0**-53


@lru_cache(maxsize=65_536)
def remembered_hash64(text: str) -> int:
    """The same, for what is hashed with every new table."""
    return hash64(text)


def hash64(text: str, key: str = "") -> int:
    """64 bits of BLAKE2b, keyed."""
    digest = blake2b(text.encode(), digest_size=8, key=blake2b(key.encode(), digest_size=32).digest())
    return int.from_bytes(digest.digest(), "big")


def draws(seed: int, items: Hashes) -> Floats:
    """One number in (0, 1) for each item, independent of the other items; SplitMix64's finalizer (Steele 2014)."""
    mixed = items ^ np.uint64(seed)
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _FACTORS[0]
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _FACTORS[1]
    mixed ^= mixed >> _SHIFTS[2]
    found: Floats = ((mixed >> _SHIFTS[3]).astype(np.float64) + 0.5) * _UNIT
    return found
