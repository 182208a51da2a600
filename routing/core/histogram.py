"""Latencies as counts by logarithmic bucket: they add up over minutes and processes, and quantiles come out of them.

DDSketch (Masson, Rim and Lee 2019, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error
Guarantees", PVLDB 12(12)), without its collapsing: bucket ``i`` holds the values in ``(GAMMA**(i-1), GAMMA**i]``
seconds, and a quantile is answered with the value that is within RELATIVE_ERROR of everything in its bucket. Values
below SMALLEST_S count as it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

RELATIVE_ERROR = 0.02
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
SMALLEST_S = 1e-5

# As JSON keeps it: bucket to count.
Buckets = dict[str, int]

_LOG_GAMMA = math.log(GAMMA)


def bucket_of(seconds: float) -> str:
    """The bucket of one value."""
    return str(math.ceil(math.log(max(seconds, SMALLEST_S)) / _LOG_GAMMA))


def count(buckets: Buckets, seconds: float, times: int = 1) -> None:
    """Add a value."""
    bucket = bucket_of(seconds)
    buckets[bucket] = buckets.get(bucket, 0) + times


def merge(into: Buckets, other: Mapping[str, int]) -> None:
    """Add all of another's values."""
    for bucket, times in other.items():
        into[bucket] = into.get(bucket, 0) + times


def quantile(buckets: Mapping[str, int], share: float) -> float | None:
    """The value that this share of the values does not exceed, in seconds; None of nothing."""
    total = sum(buckets.values())
    if not total:
        return None
    rank = share * (total - 1)
    seen = 0
    for bucket in sorted(buckets, key=int):
        seen += buckets[bucket]
        if seen > rank:
            return 2 * GAMMA ** int(bucket) / (GAMMA + 1)
    raise AssertionError("the counts add up to the total")
