"""Routing's management REST, one module a kind."""
