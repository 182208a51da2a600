"""Which replica of a deployment a prompt prefers: one that has seen its beginning, while its load is bounded. Pure.

A prompt's beginning is known by the chained hashes of its blocks, as in vLLM's prefix cache (Kwon et al. 2023, and
``vllm/v1/core/kv_cache_utils.py``); who served it is remembered for a bounded number of blocks, the last used ones.
The bound on load is that of consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2016): nobody
is preferred beyond ``factor`` times the mean; and as in SGLang's router (``balance_abs_threshold``) a few streams more
are no imbalance, because in a batch they cost less than a prompt that is computed again.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# A block that many replicas have seen is remembered for the last ones.
HOLDERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far affinity may unbalance the replicas, and how much of it is remembered."""

    factor: float = 1.25
    slack: int = 4  # streams
    blocks: int = 65_536


class InHand(NamedTuple):
    """What a ready replica has in hand, and how much it can run at once."""

    streams: int
    most: int


class Preference(NamedTuple):
    """``replica`` is who should get it, "" for anybody; ``busy`` has seen more of it, and is beyond its bound."""

    replica: str
    matched: int  # blocks of the prompt that it has seen
    blocks: int  # of the prompt
    busy: str = ""
    busy_matched: int = 0
    busy_streams: int = 0
    bound: int = 0  # on the busy one's streams

    @property
    def why(self) -> str:
        """The same in words."""
        if self.matched:
            return f"replica {self.replica} has seen {self.matched} of {self.blocks} blocks of the prompt"
        found = "no replica has seen the prompt's beginning lately"
        if self.busy:
            found = (
                f"replica {self.busy} has seen {self.busy_matched} of {self.blocks} blocks of the prompt, but has "
                f"{self.busy_streams} streams in hand, of {self.bound} at most"
            )
        return f"{found}; {self.replica or 'nobody'} has room" + (
            " and has seen least" if self.replica else ""
        )


class Prefixes:
    """Blocks to the replicas that have seen them, the latest first; owned by one event loop.

    What nobody has seen goes to the replica that has seen least, as in SGLang's router: so the caches fill evenly, and
    together they hold more.
    """

    __slots__ = ("_bounds", "_counts", "_seen")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._seen: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._counts: Counter[str] = Counter()  # blocks by replica

    def __len__(self) -> int:
        return len(self._seen)

    def learn(self, blocks: Sequence[int], replica: str) -> None:
        """A replica has these blocks in hand; a prompt's last blocks are forgotten first, as in engines."""
        seen = self._seen
        for block in reversed(blocks):
            known = seen.get(block, ())
            if not known or known[0] != replica:
                now = (replica, *[one for one in known if one != replica][: HOLDERS - 1])
                self._counts.update(now)
                self._forget(known)
                seen[block] = now
            seen.move_to_end(block)
        while len(seen) > self._bounds.blocks:
            self._forget(seen.popitem(last=False)[1])

    def _forget(self, replicas: tuple[str, ...]) -> None:
        for replica in replicas:
            self._counts[replica] -= 1
            if not self._counts[replica]:
                del self._counts[replica]

    def prefer(self, blocks: Sequence[int], ready: Mapping[str, InHand], streams: int = 1) -> Preference:
        """Who has seen most of these blocks and may have so many streams more; among equals, who has least in hand."""
        total = streams + sum(one.streams for one in ready.values())
        bound = math.ceil(self._bounds.factor * total / len(ready)) + self._bounds.slack
        busy, busy_matched = "", 0
        for depth in range(len(blocks), 0, -1):
            best, least = "", 0
            for replica in self._seen.get(blocks[depth - 1], ()):
                load = ready.get(replica)
                if load is None:
                    continue
                if load.streams + streams > min(bound, load.most):
                    if not busy:
                        busy, busy_matched = replica, depth
                elif not best or load.streams < least:
                    best, least = replica, load.streams
            if best:
                return Preference(best, depth, len(blocks))
        free = [replica for replica, load in ready.items() if load.streams + streams <= min(bound, load.most)]
        first = min(free, key=lambda one: (self._counts[one], ready[one].streams), default="")
        if not busy:
            return Preference(first, 0, len(blocks))
        taken, most = ready[busy]
        return Preference(first, 0, len(blocks), busy, busy_matched, taken, min(bound, most))
