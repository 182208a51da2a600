"""Which arm of which experiment a request belongs to. Pure: the same unit always gets the same arm.

A unit (key, user, session or request) is hashed once with BLAKE2b. Each experiment divides those hashes into 10,000
buckets by a universal hash function that is keyed with its own random salt, so that experiments are independent of
each other; the buckets are dealt out to the arms. A new share moves only those buckets that have to change hands
(:func:`deal`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from operator import attrgetter
from typing import Any

import msgspec

from routing.core.facts import RequestFacts

BUCKETS = 10_000
UNITS = ("key", "user", "session", "request")
# What an experiment's filters may look at: the attributes of a Subject.
FILTERS = ("key", "team", "endpoint", "language", "tags")
ENDPOINTS = ("chat.completions", "completions")
HOLDOUT = 0  # the arm of units that are kept out for good
MASK = 2**64 - 1
_FIRST, _SECOND = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53
_PRIME = 2**61 - 1
_UNKNOWN = -1
# Units whose assignments are at hand, of each target; a new table begins anew.
MOST_REMEMBERED = 4096
_HOLDOUT_SALT = 0xA0761D6478BD642F
_SAMPLE_SALT = 0xE7037ED1A0B428DB


@dataclass(slots=True, kw_only=True)
class Subject:
    """What an assignment reads of a request, where there is no request; empty is "not told"."""

    request: str
    key: str = ""
    user: str = ""
    session: str = ""
    team: str = ""
    endpoint: str = ""
    language: str = ""
    tags: frozenset[str] = frozenset()


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One exposure: ``unit`` is the unit's number within this experiment, ``served_id`` what the arm asks for."""

    experiment: int
    phase: int
    arm: int
    unit: int
    served_id: str | None = None  # None: whatever the id means without the experiment
    experiment_name: str = ""
    arm_name: str = "holdout"
    # Of a shadow: the arm that the original stands for, and how many tokens a day its copies may take.
    control: str = ""
    tokens_per_day: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEntry:
    """One arm; the control serves its version as well, whatever the alias means by then."""

    id: int
    name: str
    served_id: str


_KEPT_OUT = ArmEntry(id=HOLDOUT, name="holdout", served_id="")
_PERHAPS_HELD_OUT = ArmEntry(id=-1, name="", served_id="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """An exclusion group's layer of buckets, and the part of it that one experiment has."""

    unit: str
    salt: int
    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentEntry:
    """One running experiment. ``deal`` is the buckets' owners as (first bucket, arm's id or None), in order."""

    id: int
    name: str
    targets: tuple[str, ...]  # the model ids or the route that clients name
    unit: str
    salt: int
    phase: int
    arms: tuple[ArmEntry, ...]
    deal: tuple[tuple[int, int | None], ...]
    filters: Mapping[str, frozenset[str]] = field(default_factory=dict)
    holdout: int = 0  # buckets
    group: Group | None = None
    # A shadow's deal says which requests are copied to which arm; all of them are served as if it were not.
    shadow: bool = False
    control: str = "control"
    tokens_per_day: int = 0


class _Ready:
    """An entry laid out for speed: an owner for every bucket."""

    __slots__ = ("entry", "filters", "holdout", "owners")

    def __init__(self, entry: ExperimentEntry) -> None:
        self.entry = entry
        self.filters = tuple((name, wanted) for name, wanted in entry.filters.items() if wanted)
        self.holdout = _Divider(_salt(entry) ^ _HOLDOUT_SALT) if entry.holdout else None
        by_id = {arm.id: arm for arm in entry.arms}
        # With a holdout, every unit is looked at more closely.
        nobody = _PERHAPS_HELD_OUT if entry.holdout else None
        owners = [None if arm is None else by_id.get(arm) for arm in _owners(entry.deal)]
        self.owners = [owner or nobody for owner in owners]

    def found(self, unit: int, owner: ArmEntry, subject: Subject | RequestFacts) -> Assignment | None:
        """The assignment of a unit whose bucket is the owner's; None where a filter is not met."""
        entry = self.entry
        if self.filters and not _matches(self.filters, subject):
            return None
        if self.holdout is not None and self.holdout.bucket(unit) < entry.holdout:
            owner = _KEPT_OUT
        elif owner is _PERHAPS_HELD_OUT:
            return None
        return Assignment(
            experiment=entry.id,
            phase=entry.phase,
            arm=owner.id,
            unit=mix(unit ^ entry.salt),
            served_id=owner.served_id or None,
            experiment_name=entry.name,
            arm_name=owner.name,
            control=entry.control if entry.shadow else "",
            tokens_per_day=entry.tokens_per_day,
        )


class _Divider:
    """Units into buckets: (a·unit + b) mod p, an independent division for every salt.

    Carter and Wegman, "Universal classes of hash functions", 1979; p is the Mersenne prime 2^61 - 1.
    """

    __slots__ = ("a", "b")

    def __init__(self, salt: int) -> None:
        self.a = mix(salt) % (_PRIME - 1) + 1
        self.b = mix(salt ^ _FIRST) % _PRIME

    def bucket(self, unit: int) -> int:
        return (unit * self.a + self.b) % _PRIME * BUCKETS >> 61


class _Layer:
    """An exclusion group: which experiment, if any, has each bucket of the group's own layer."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members: list[tuple[_Ready, _Divider] | None] = [None] * BUCKETS

    def add(self, one: _Ready, group: Group) -> None:
        self.members[group.low : group.high] = [(one, _Divider(one.entry.salt))] * (group.high - group.low)


class _Line:
    """What runs on one target. ``steps`` are tuples, because their loop runs for every unit.

    A unit comes again and again, and gets the same each time: what it got is remembered, by all that is read of it.
    """

    __slots__ = ("_read", "_remembered", "kinds", "layers", "reads", "steps")

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.reads: dict[str, None] = {}
        self._read: Callable[[Any], Any] | None = None
        self._remembered: dict[Any, Assignment | None] = {}
        # Place of the unit's kind, the division, and who has each bucket: an arm, or a group's member.
        self.steps: list[tuple[int, int, int, list[Any], _Ready | None]] = []
        self.layers: dict[int, _Layer] = {}

    def add(self, one: _Ready) -> None:
        group = one.entry.group
        kind = one.entry.unit if group is None else group.unit
        self.reads |= dict.fromkeys((kind, *(name for name, _ in one.filters)))
        # No request comes again.
        self._read = None if "request" in self.reads else attrgetter(*self.reads)
        if group is None:
            self._add(kind, one.entry.salt, one.owners, one)
            return
        layer = self.layers.get(group.salt)
        if layer is None:
            layer = self.layers[group.salt] = _Layer()
            self._add(kind, group.salt, layer.members, None)
        layer.add(one, group)

    def _add(self, kind: str, salt: int, owners: list[Any], one: _Ready | None) -> None:
        if kind not in self.kinds:
            self.kinds.append(kind)
        divider = _Divider(salt)
        self.steps.append((self.kinds.index(kind), divider.a, divider.b, owners, one))

    def first(self, subject: Subject | RequestFacts) -> Assignment | None:
        """The first experiment that this request is in."""
        if self._read is None:
            return self._first(subject)
        told = self._read(subject)
        try:
            return self._remembered[told]
        except KeyError:
            found = self._first(subject)
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[told] = found
        return found

    def _first(self, subject: Subject | RequestFacts) -> Assignment | None:
        units = [unit_hash(kind, getattr(subject, kind)) for kind in self.kinds]
        for kind, a, b, owners, one in self.steps:
            unit = units[kind]
            owner = owners[(unit * a + b) % _PRIME * BUCKETS >> 61]
            if owner is None or unit == _UNKNOWN:
                continue
            ready = one
            if ready is None:
                ready, divider = owner
                owner = ready.owners[divider.bucket(unit)]
                if owner is None:
                    continue
            found = ready.found(unit, owner, subject)
            if found is not None:
                return found
        return None


class Experiments:
    """The running experiments by what clients name. Those of one target are tried in order of their ids."""

    __slots__ = ("_mirrors", "_split")

    def __init__(self, entries: Iterable[ExperimentEntry] = ()) -> None:
        self._split: dict[str, _Line] = {}
        self._mirrors: dict[str, _Line] = {}
        for entry in sorted(entries, key=lambda entry: entry.id):
            one = _Ready(entry)
            lines = self._mirrors if entry.shadow else self._split
            for target in entry.targets:
                lines.setdefault(target, _Line()).add(one)

    def __bool__(self) -> bool:
        return bool(self._split or self._mirrors)

    @property
    def mirrors(self) -> bool:
        """Whether any experiment is a shadow."""
        return bool(self._mirrors)

    def mirror(self, target: str, subject: Subject | RequestFacts) -> Assignment | None:
        """The arm that gets a copy of this request, if any."""
        line = self._mirrors.get(target)
        return None if line is None else line.first(subject)

    def split(self, target: str) -> bool:
        """Whether requests for this may be assigned to an arm."""
        return target in self._split

    def assign(self, target: str, subject: Subject | RequestFacts) -> Assignment | None:
        """The experiment and arm of this request, if any: a request is in one experiment at most.

        A request that does not name the experiment's unit (no ``user``, no session) is not in it.
        """
        line = self._split.get(target)
        return None if line is None else line.first(subject)


def _salt(entry: ExperimentEntry) -> int:
    """Experiments of one group hold out the same units."""
    return entry.salt if entry.group is None else entry.group.salt


def _matches(filters: Sequence[tuple[str, frozenset[str]]], subject: Subject | RequestFacts) -> bool:
    for name, wanted in filters:
        if name == "tags":
            if not wanted <= subject.tags:
                return False
        elif getattr(subject, name) not in wanted:
            return False
    return True


def unit_hash(kind: str, text: str) -> int:
    """61 bits of a unit; a key and a user of the same name are different units. _UNKNOWN where none is named."""
    if not text:
        return _UNKNOWN
    digest = blake2b(f"{kind}:{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 3


def mix(number: int) -> int:
    """64 well-mixed bits of 64 bits: multiply, fold, multiply, as in MurmurHash3's finaliser."""
    number = number * _FIRST & MASK
    return (number ^ number >> 32) * _SECOND & MASK


def sample_rank(unit: int) -> int:
    """Where a unit stands in the order by which units are sampled: independent of its arm."""
    return mix(unit ^ _SAMPLE_SALT)


Deal = tuple[tuple[int, int | None], ...]


def deal(current: Deal, wanted: Mapping[int, int]) -> Deal:
    """Deal the buckets out anew: ``wanted`` buckets for each arm, the rest nobody's, the fewest moves.

    A bucket leaves its owner only if the owner has too many, and goes only to one that has too few; so exactly
    half of the sum of all differences moves, which is the least that can.
    """
    if min(wanted.values(), default=0) < 0 or sum(wanted.values()) > BUCKETS:
        raise ValueError(f"the shares are not from 0 to {BUCKETS} buckets together")
    runs = [(first, last, owner) for (first, owner), (last, _) in pairwise((*current, (BUCKETS, None)))]
    if not current:
        runs = [(0, BUCKETS, None)]
    left = dict(wanted)
    left[-1] = BUCKETS - sum(wanted.values())  # nobody's
    kept: list[tuple[int, int, int]] = []
    loose: list[tuple[int, int]] = []
    for first, last, owner in runs:
        name = -1 if owner is None else owner
        keep = min(last - first, left.get(name, 0))
        left[name] = left.get(name, 0) - keep
        if keep:
            kept.append((first, first + keep, name))
        if first + keep < last:
            loose.append((first + keep, last))
    for first, last in loose:
        start = first
        for name in sorted(left, key=lambda one: (one == -1, one)):
            take = min(last - start, left[name])
            if take:
                kept.append((start, start + take, name))
                left[name] -= take
                start += take
    found: list[tuple[int, int | None]] = []
    for first, _, name in sorted(kept):
        owner = None if name == -1 else name
        if not found or found[-1][1] != owner:
            found.append((first, owner))
    return tuple(found)


def moved(before: Deal, after: Deal) -> int:
    """How many buckets have another owner."""
    owners = [_owners(one) for one in (before, after)]
    return sum(1 for old, new in zip(*owners, strict=True) if old != new)


def counts(dealt: Deal) -> dict[int, int]:
    """Buckets by arm."""
    found: dict[int, int] = {}
    for (first, owner), (last, _) in pairwise((*dealt, (BUCKETS, None))):
        if owner is not None:
            found[owner] = found.get(owner, 0) + last - first
    return found


def _owners(dealt: Deal) -> list[int | None]:
    owners: list[int | None] = [None] * BUCKETS
    for (first, owner), (last, _) in pairwise((*dealt, (BUCKETS, None))):
        owners[first:last] = [owner] * (last - first)
    return owners


def exposed(weights: Mapping[int, int], exposure: float) -> dict[int, int]:
    """Buckets for each arm when a part of the traffic is in the experiment; the arms' ratio stays as it is."""
    total = sum(weights.values())
    return {arm: int(BUCKETS * exposure * weight / total + 1e-9) for arm, weight in weights.items()}


def free_slice(taken: Iterable[tuple[int, int]], width: int) -> tuple[int, int] | None:
    """The first run of ``width`` buckets of a group's layer that no experiment has."""
    start = 0
    for low, high in sorted(taken):
        if low - start >= width:
            break
        start = max(start, high)
    return (start, start + width) if start + width <= BUCKETS else None
