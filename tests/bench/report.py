"""What a benchmark says: one JSON line a figure on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value beside its peer's; ``ratio`` is always ours over theirs."""

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value

    def line(self) -> str:
        """The JSON line; ``note`` is there only when there is something to say."""
        fields = asdict(self)
        note = fields.pop("note")
        fields["ratio"] = self.ratio
        for key, number in fields.items():
            if isinstance(number, float):
                fields[key] = float(f"{number:.4g}")
        if note:
            fields["note"] = note
        return json.dumps(fields)


def emit(figure: Figure) -> None:
    """Print a figure's JSON line."""
    print(figure.line(), flush=True)


def say(text: str) -> None:
    """Progress, for whoever watches."""
    print(text, file=sys.stderr, flush=True)
