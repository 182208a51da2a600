"""Routing's admin pages, one module a kind."""

from routing.admin import budgets, experiments, usage

__all__ = ["budgets", "experiments", "usage"]
