"""A slate: everybody who could serve one public id, as columns made once a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from routing.core.hashing import remembered_hash64
from routing.core.live import Floats
from routing.core.route import AUTO, Cause, Constraints, Policy, Weights

if TYPE_CHECKING:
    from routing.core.table import DeploymentEntry, RoutingTable, VersionEntry

Bools = npt.NDArray[np.bool_]

MAX_MASKS = 256
NO_SHARE = 1e-300
PICO, NANO, HOUR_S = 1e-12, 1e-9, 3600
ALL_CAUSES = frozenset(Cause)
NOBODY = 0  # the row of LiveColumns that is never ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One candidate of a route, resolved: a version with its share."""

    version: VersionEntry
    weight: float = 1.0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A deployment of a candidate, or the candidate itself while nothing deploys it."""

    line: Line
    place: int
    entry: DeploymentEntry | None

    @property
    def id(self) -> str:
        return self.entry.id if self.entry else self.line.version.served_id

    @property
    def context(self) -> int:
        own = self.entry.limits.context_length if self.entry else None
        return own or self.line.version.context_length or 0

    @property
    def chats(self) -> bool:
        return self.entry.has_chat_template if self.entry else "chat" in self.line.version.capabilities


class Slate:
    """Targets in the order of their ids: each is a deployment, or a version that nothing deploys.

    ``masks`` are remembered answers to "who has this word", "whom may this key use": they follow from the
    table alone, so remembering them changes nothing.

    ``own`` is given where the first line is what was asked for and the others only stand in for it: who is of that
    line. ``fallback_on`` and ``first_token_s`` are as in a RouteEntry.
    """

    __slots__ = (
        "_masks",
        "constraints",
        "context",
        "context_known",
        "contexts_differ",
        "deadline_s",
        "entries",
        "fallback_on",
        "first_token_s",
        "hashes",
        "hourly",
        "id",
        "ids",
        "inverse_weight",
        "judged",
        "never",
        "no_chat",
        "notes",
        "order",
        "own",
        "policy",
        "price_input",
        "price_output",
        "price_second",
        "priced",
        "problems",
        "quality",
        "route",
        "rows",
        "versions",
        "wakeable",
        "weight",
        "weights",
    )

    def __init__(
        self,
        id: str,
        lines: Iterable[Line],
        *,
        table: RoutingTable,
        route: str | None = None,
        policy: Policy = Policy.LEAST_LOADED,
        weights: Weights | None = None,
        constraints: Constraints | None = None,
        problems: Sequence[str] = (),
        fallback_on: frozenset[Cause] = ALL_CAUSES,
        first_token_s: float | None = None,
        stand_in: bool = False,
    ) -> None:
        """``stand_in``: every line after the first is there for when that one fails."""
        targets = _targets(lines, table.deployments)
        self.id = id
        self.route = route
        self.policy = policy
        self.weights = _normalised(weights or Weights())
        self.constraints = constraints or Constraints()
        self.problems = tuple(problems)
        self.fallback_on = fallback_on
        self.first_token_s = first_token_s
        self.ids = tuple(target.id for target in targets)
        self.versions = tuple(target.line.version for target in targets)
        self.notes = tuple(target.line.note for target in targets)
        self.entries = tuple(target.entry for target in targets)
        self.weight = _floats(target.line.weight for target in targets)
        self.order = _floats(target.place for target in targets)
        # Shares this small are none: they would overflow.
        none = self.weight < NO_SHARE
        self.inverse_weight: Floats = np.where(none, np.inf, 1.0 / np.where(none, 1.0, self.weight))
        self.rows = np.array([table.rows[e.id] if e else NOBODY for e in self.entries], dtype=np.intp)
        self.hashes = np.array(
            [remembered_hash64(version.served_id) for version in self.versions], dtype=np.uint64
        )
        prices = [version.prices for version in self.versions]
        self.price_input = _floats((p.input_pico or 0) * PICO for p in prices)
        self.price_output = _floats((p.output_pico or 0) * PICO for p in prices)
        # Of a replica's second; it counts for nothing where tokens have a price (see routing.core.cost).
        self.price_second = _floats(
            0.0 if p.by_tokens else (p.device_hour_nano or 0) * NANO / HOUR_S * (e.devices if e else 1)
            for p, e in zip(prices, self.entries, strict=True)
        )
        self.priced = bool(self.price_input.any() or self.price_output.any())
        self.hourly = bool(self.price_second.any())
        self.context = _floats(target.context for target in targets)
        self.context_known = bool(self.context.all())
        self.own = self.order == 0 if stand_in else None
        # Nobody stands in for what may be too small by a bound: the engine, which counts, says so first.
        chosen_among = self.context if self.own is None else self.context[self.own]
        self.contexts_differ = len(set(chosen_among.tolist())) > 1
        self.no_chat = _bools(not target.chats for target in targets)
        self.wakeable = _bools(e is not None and e.can_wake for e in self.entries)
        self.never = ~self.wakeable  # unless it is ready
        self.deadline_s = _floats(e.limits.default_deadline_s if e else 0.0 for e in self.entries)
        self.quality = _floats(version.quality for version in self.versions)
        judges = table.scorer if policy is Policy.BALANCED else None
        self.judged = judges.columns(self.versions) if judges else None
        self._masks: dict[object, Bools] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def lacking(self, word: str) -> Bools:
        """Who has not this capability or tag."""
        return self._remembered(word, lambda version: word not in version.words)

    def unable(self, capability: str) -> Bools:
        """Who cannot do this, of those that say what they can do."""
        return self._remembered(
            ("able", capability),
            lambda version: bool(version.capabilities) and capability not in version.capabilities,
        )

    def preferred(self, wish: str) -> Bools:
        """Who has this word, or is this model or version."""
        return self._remembered(
            ("prefer", wish),
            lambda version: wish in version.words or wish in (version.model, version.served_id),
        )

    def barred(self, patterns: tuple[str, ...]) -> Bools:
        """Whom a key with these patterns may not use: they match neither it, nor its model, nor the route."""
        named = self.route is not None and self.route != AUTO and matches(self.route, patterns)
        return self._remembered(
            ("barred", patterns),
            lambda version: (
                not (named or matches(version.model, patterns) or matches(version.served_id, patterns))
            ),
        )

    def _remembered(self, key: object, holds: Callable[[VersionEntry], bool]) -> Bools:
        found = self._masks.get(key)
        if found is None:
            if len(self._masks) >= MAX_MASKS:
                self._masks.clear()
            found = np.array([holds(version) for version in self.versions], dtype=np.bool_)
            self._masks[key] = found
        return found


def _floats(values: Iterable[float]) -> Floats:
    return np.array(list(values), dtype=np.float64)


def _bools(values: Iterable[bool]) -> Bools:
    return np.array(list(values), dtype=np.bool_)


def _normalised(weights: Weights) -> Weights:
    total = weights.quality + weights.cost + weights.latency + weights.load
    if total <= 0:
        return Weights(quality=0.0, cost=0.0, latency=0.0, load=0.0)
    return Weights(
        quality=weights.quality / total,
        cost=weights.cost / total,
        latency=weights.latency / total,
        load=weights.load / total,
    )


def _targets(lines: Iterable[Line], deployments: Mapping[str, DeploymentEntry]) -> list[_Target]:
    """By id; a version that stands in two lines is one candidate with both shares, at the earlier place."""
    merged: dict[str, tuple[Line, int]] = {}
    for place, line in enumerate(lines):
        known = merged.get(line.version.served_id)
        if known is None:
            merged[line.version.served_id] = (line, place)
        else:
            both = replace(known[0], weight=known[0].weight + line.weight)
            merged[line.version.served_id] = (both, known[1])
    found = []
    for line, place in merged.values():
        names = line.version.deployments
        entries = [deployments[name] for name in names] if names else [None]
        found += [_Target(line=line, place=place, entry=entry) for entry in entries]
    return sorted(found, key=lambda target: (target.line.version.served_id, target.id))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns (``*`` and ``?`` as in file names) is this name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
