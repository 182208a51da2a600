"""Reads the environment; a value that is not what its variable takes is refused by the variable's name."""

from __future__ import annotations

import warnings
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

KINDS = {int: "a whole number", float: "a number"}


class Environment(environ.Env):
    """django-environ, whose own errors name the value alone."""

    def get_value(self, var: str, cast: Any = None, *args: Any, **kwargs: Any) -> Any:
        """ImproperlyConfigured, in one line, for a value that cannot be cast."""
        try:
            return super().get_value(var, cast, *args, **kwargs)
        except ValueError as error:
            raise ImproperlyConfigured(
                f"{var} is {self.ENVIRON.get(var, '')!r}: set it to {KINDS.get(cast, 'another value')}."
            ) from error

    def one_of(self, var: str, choices: tuple[str, ...], *, default: str) -> str:
        """A word of a few, in small letters or large."""
        given = str(self(var, default=default))
        if given.upper() not in choices:
            raise ImproperlyConfigured(f"{var} is {given!r}: set it to {', '.join(choices)}.")
        return given.upper()

    def database(self, url: str) -> dict[str, Any]:
        """The connection that DATABASE_URL names."""
        with warnings.catch_warnings():
            # Said below, by name.
            warnings.simplefilter("ignore")
            found = dict(self.db_url_config(url))
        if not found.get("ENGINE"):
            raise ImproperlyConfigured(
                "DATABASE_URL is no database's address: set it to postgres://… or sqlite:///…."
            )
        return found
