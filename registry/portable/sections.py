"""Parts of the document that belong to an app above this one: it says once, at its start, how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Do = Callable[[str, str], object]  # actor, reason


class Change(NamedTuple):
    """One step. ``waits`` says why it cannot be done yet: apply again later."""

    what: str
    subject: str
    fields: dict[str, Any]
    do: Do
    waits: str = ""


def bound(verb: Callable[..., Any], *args: Any, **fields: Any) -> Do:
    """An action with all but its actor and reason."""
    return lambda actor, reason: verb(*args, actor=actor, reason=reason, **fields)


class Section(Protocol):
    """One key of the document, with a list of rows that have a ``name``."""

    name: str
    noun: str

    @property
    def row(self) -> type:
        """The msgspec.Struct of one."""

    def export(self) -> list[Any]:
        """All rows, in an order that diffs well."""

    def plan(self, wanted: Sequence[Any], before: Mapping[str, str], *, prune: bool) -> Iterator[Change]:
        """What differs; ``before`` has what is registered or promoted by then, with what that waits for."""


_sections: dict[str, Section] = {}


def provide(section: Section) -> None:
    """From now on it is a part of every document."""
    _sections[section.name] = section


def sections() -> list[Section]:
    """In the order in which they were provided."""
    return list(_sections.values())
