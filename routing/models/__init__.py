"""Routing's rows, one module a kind."""

from routing.models.budgets import Budget, Team
from routing.models.experiments import (
    Arm,
    ArmTotals,
    ExclusionGroup,
    Experiment,
    Exposure,
    Feedback,
    PhaseUnits,
)
from routing.models.routes import Route, RouteCandidate, TrainedScorer
from routing.models.usage import StatsMinute, UsageCursor, UsageHour

__all__ = [
    "Arm",
    "ArmTotals",
    "Budget",
    "ExclusionGroup",
    "Experiment",
    "Exposure",
    "Feedback",
    "PhaseUnits",
    "Route",
    "RouteCandidate",
    "StatsMinute",
    "Team",
    "TrainedScorer",
    "UsageCursor",
    "UsageHour",
]
