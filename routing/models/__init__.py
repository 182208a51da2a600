"""Routing's rows, one module a kind."""
