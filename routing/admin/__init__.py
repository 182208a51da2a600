"""Routing's admin pages, one module a kind."""

from routing.admin import experiments

__all__ = ["experiments"]
