"""Routing's admin pages, one module a kind."""
