"""Routing's admin pages, one module a kind."""

from routing.admin import budgets, experiments, routes, usage

__all__ = ["budgets", "experiments", "routes", "usage"]
