"""How good a version's answer to a prompt will be: a linear scorer over a few traits, small enough to read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from routing.core.live import Floats

if TYPE_CHECKING:
    from routing.core.table import VersionEntry

TRAITS = (
    "bias",
    "length",  # of the prompt: 0 for nothing, 1 at about 8,000 characters
    "other_script",  # the share of characters outside ASCII
    "code",
    "maths",
    "question",
    "instruction",  # write, summarise, translate, …
    "reasoning",  # why, how, compare, prove, step by step
)
USUAL_QUALITY = 0.5  # where not even the size is known
LONGEST_CHARS = 8000
# What is read of a long prompt: its end, where the question stands.
READ_CHARS = 2000

_CODE = re.compile(
    r"```|\bdef \w+\(|\bclass \w+[:({]|#include|\bimport \w+|[;{}]\s*\n|</\w+>|=>|\bSELECT\b.+\bFROM\b"
)
_MATHS = re.compile(
    r"\d\s*[-+*/^=×÷]\s*\d|\\frac|\\sum|\b(?:solve|equation|integral|derivative|probability)\b", re.I
)
_INSTRUCTION = re.compile(
    r"\b(?:write|summari[sz]e|translate|rewrite|list|draft|generate|explain|describe)\b", re.I
)
_REASONING = re.compile(r"\b(?:why|how|compare|prove|reason|step by step|because|therefore)\b", re.I)


def traits_of(text: str) -> tuple[float, ...]:
    """The prompt as numbers from 0 to 1, in the order of TRAITS."""
    end = text[-READ_CHARS:]
    other = 0.0 if end.isascii() else sum(not char.isascii() for char in end) / len(end)
    return (
        1.0,
        min(1.0, math.log1p(len(text)) / math.log1p(LONGEST_CHARS)),
        other,
        float(_CODE.search(end) is not None),
        float(_MATHS.search(end) is not None),
        float(end.rstrip().endswith(("?", "？"))),
        float(_INSTRUCTION.search(end) is not None),
        float(_REASONING.search(end) is not None),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """One trained scorer: a weight a trait for each version that it knows, by served id."""

    name: str
    weights: Mapping[str, tuple[float, ...]]

    def columns(self, versions: Sequence[VersionEntry]) -> Floats:
        """Weights by target and trait; a version that nobody rated has its assumed quality, whatever the prompt."""
        found = np.zeros((len(versions), len(TRAITS)))
        for row, version in enumerate(versions):
            known = self.weights.get(version.served_id)
            if known is None:
                found[row, 0] = logit(version.quality)
            else:
                found[row, : len(known)] = known
        return found


def quality(columns: Floats, traits: Sequence[float]) -> Floats:
    """The chance of a good answer, for each target."""
    found: Floats = 1.0 / (1.0 + np.exp(-(columns @ np.asarray(traits))))
    return found


def assumed_quality(parameters: int | None) -> float:
    """Before anybody rated it: 0.1 at 100 million parameters, 0.9 at a trillion, even steps a decade between."""
    if not parameters:
        return USUAL_QUALITY
    decades = (math.log10(parameters) - 8) / 4
    return 0.1 + 0.8 * min(1.0, max(0.0, decades))


def logit(chance: float) -> float:
    """The inverse of the logistic function, kept finite."""
    chance = min(max(chance, 1e-6), 1 - 1e-6)
    return math.log(chance / (1 - chance))
