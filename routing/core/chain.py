"""Who is tried, in which order: the first choice, then the fallbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

import msgspec

# Nobody tries more than this many after one another.
CHAIN = 8


class Link(msgspec.Struct, frozen=True):
    """One place in the chain: a deployment, the version that it serves, and what is expected of it."""

    id: str
    served_id: str
    cold: bool  # it must be loaded first: ``ttft_s`` has the time that takes
    ttft_s: float
    tpot_s: float
    cost_usd: float


class ArmsChain(Sequence[Link]):
    """An arm's own links, then those of what was asked for, worked out once somebody looks past the first.

    Most requests never need them: the arm serves. ``first`` has one link at least; ``after`` is called once.
    """

    __slots__ = ("_after", "_links")

    def __init__(self, first: tuple[Link, ...], after: Callable[[], Iterable[Link]]) -> None:
        self._links = first
        self._after: Callable[[], Iterable[Link]] | None = after

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[Link]:
        return iter(self._all())

    @overload
    def __getitem__(self, place: int) -> Link: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Link, ...]: ...
    def __getitem__(self, place: int | slice) -> Link | tuple[Link, ...]:
        return self._links[0] if place == 0 else self._all()[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def _all(self) -> tuple[Link, ...]:
        after, self._after = self._after, None
        if after is not None:
            known = {link.id for link in self._links}
            self._links = (*self._links, *(link for link in after() if link.id not in known))[:CHAIN]
        return self._links


def may_go_on(chain: Sequence[Link]) -> bool:
    """Whether there may be another choice after the first; it is not worked out for that."""
    return isinstance(chain, ArmsChain) or len(chain) > 1
