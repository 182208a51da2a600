"""How much traffic a target has."""

from __future__ import annotations

from routing.models.experiments import Experiment


def requests_per_day(row: Experiment) -> float | None:
    """Of the last week; None while nobody has counted."""
    return None
