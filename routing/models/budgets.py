"""Who pays: teams, and budgets that limit what a key, a team or a route may spend."""

from __future__ import annotations

import re
from decimal import Decimal

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from routing.core.cost import MOST_NANO, NANO, Period, Scope

TEAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,98}[A-Za-z0-9]|[A-Za-z0-9]")


def check_team_name(value: str) -> None:
    """A team's name stands in usage rows and reports."""
    if not TEAM_NAME.fullmatch(value):
        raise ValidationError("letters, digits, spaces, '.', '_' and '-' only, at most 100", code="name")


class Team(models.Model):
    """Keys that are reported, and limited, together."""

    # Usage is kept under the name, so it does not change.
    name = models.CharField(max_length=100, unique=True, validators=[check_team_name])
    description = models.TextField(blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Budget(models.Model):
    """What a key, a team or a route may spend in each day or month (UTC), or ever."""

    scope = models.CharField(max_length=10, choices=[(one.value, one.value) for one in Scope])
    # The key's id, or the team's or route's name.
    subject = models.CharField(max_length=200, help_text="a key's id, or the name of a team or a route")
    period = models.CharField(
        max_length=10, choices=[(one.value, one.value) for one in Period], default=Period.MONTH.value
    )
    limit_usd = models.DecimalField(
        "limit (USD)",
        max_digits=13,
        decimal_places=6,
        validators=[MinValueValidator(Decimal(0)), MaxValueValidator(Decimal(MOST_NANO // NANO))],
    )
    enabled = models.BooleanField(default=True)
    # How often it was switched on: what was spent while it was off is in no ledger, so each time has its own.
    opened = models.PositiveIntegerField(default=1, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ("scope", "subject", "period")
        constraints = [
            models.UniqueConstraint(fields=("scope", "subject", "period"), name="one_budget_a_period")
        ]

    def __str__(self) -> str:
        return self.named(self.subject)

    def named(self, whom: str) -> str:
        """In words, with a name in the place of a key's id."""
        every = {Period.DAY.value: "daily ", Period.MONTH.value: "monthly "}.get(self.period, "")
        return f"{every}budget of {self.scope} {whom}"
