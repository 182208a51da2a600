"""Routes: public ids with candidates, a policy and constraints; and the scorers that judge for ``balanced``."""

from __future__ import annotations

import math
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from registry.models import (
    MAX_TARGET_CHARS,
    check_causes,
    check_kinds,
    check_model_name,
    check_tags,
    check_target,
)
from routing.core.route import Policy

MAX_CANDIDATES = 200
MAX_WEIGHT = 1_000_000.0
MAX_HEDGE_PERCENT = 100.0
POLICIES = [
    (Policy.WEIGHTED.value, "weighted: by share"),
    (Policy.LEAST_COST.value, "least cost: the cheapest for the request"),
    (Policy.LOWEST_LATENCY.value, "lowest latency: the soonest done, as predicted"),
    (Policy.LEAST_LOADED.value, "least loaded: the emptiest that is ready"),
    (Policy.BALANCED.value, "balanced: quality, cost, latency and load weighed"),
    (Policy.PRIORITY.value, "priority: in the order of the list"),
]


def check_finite(value: float) -> None:
    """A number that can be added up."""
    if not math.isfinite(value):
        raise ValidationError("a finite number", code="finite")


def _share(default: float, words: str) -> models.FloatField:
    bounds: list[Any] = [check_finite, MinValueValidator(0.0), MaxValueValidator(MAX_WEIGHT)]
    return models.FloatField(words, default=default, validators=bounds)


class Route(models.Model):
    """A public model id that stands for a choice among versions."""

    name = models.CharField(max_length=200, unique=True, validators=[check_model_name])
    description = models.TextField(blank=True)
    enabled = models.BooleanField(default=True, help_text="switched off, it is answered as unknown")
    policy = models.CharField(max_length=20, choices=POLICIES, default=Policy.WEIGHTED.value)
    # What ``balanced`` weighs: only the proportions matter.
    weight_quality = _share(0.4, "weight of quality")
    weight_cost = _share(0.2, "weight of cost")
    weight_latency = _share(0.3, "weight of latency")
    weight_load = _share(0.1, "weight of load")
    # Capabilities (chat, json) and tags (region=eu) that a candidate must have.
    require = models.JSONField(default=list, blank=True, validators=[check_tags])
    max_cost_usd = models.DecimalField(
        "most that a request may cost ($)",
        max_digits=12,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
    )
    max_ttft_ms = models.PositiveIntegerField(
        "highest predicted TTFT (ms)", null=True, blank=True, validators=[MinValueValidator(1)]
    )
    max_tpot_ms = models.PositiveIntegerField(
        "highest predicted TPOT (ms)", null=True, blank=True, validators=[MinValueValidator(1)]
    )
    min_context = models.PositiveIntegerField(
        "least context (tokens)", null=True, blank=True, validators=[MinValueValidator(1)]
    )
    first_token_ms = models.PositiveIntegerField(
        "longest wait for the first token (ms)",
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="then the next candidate is tried; empty: as long as the request may take",
    )
    hedge_percent = models.FloatField(
        "most hedged requests (%)",
        default=0.0,
        validators=[check_finite, MinValueValidator(0.0), MaxValueValidator(MAX_HEDGE_PERCENT)],
        help_text="this share may be asked of the next candidate as well, where the first is slower than 95 in 100 "
        "are; 0: none",
    )
    # Causes (routing.core.route.Cause) after which no other candidate is tried.
    no_fallback_on = models.JSONField(
        default=list,
        blank=True,
        validators=[check_causes],
        help_text="after these no other candidate is tried",
    )
    revision = models.PositiveIntegerField(default=1, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Django's validators let every empty value pass."""
        check_kinds(self, require=list, no_fallback_on=list)
        if self.policy == Policy.BALANCED and not (
            self.weight_quality + self.weight_cost + self.weight_latency + self.weight_load
        ):
            raise ValidationError({"weight_quality": "balanced needs a weight above 0"})


class RouteCandidate(models.Model):
    """One line of a route. What ``target`` means is looked up in each configuration, as aliases move."""

    route = models.ForeignKey(Route, on_delete=models.CASCADE, related_name="candidates")
    position = models.PositiveSmallIntegerField(
        default=0, help_text="the order of priority, the lowest first"
    )
    target = models.CharField(
        "model",
        max_length=MAX_TARGET_CHARS,
        validators=[check_target],
        help_text="name, name@version or name@alias",
    )
    weight = _share(1.0, "weight")
    note = models.CharField(max_length=300, blank=True)

    class Meta:
        verbose_name = "candidate"
        ordering = ("position", "id")
        constraints = [models.UniqueConstraint(fields=("route", "target"), name="one_line_of_a_target")]

    def __str__(self) -> str:
        return self.target


class TrainedScorer(models.Model):
    """One outcome of ``router_train``: weights a trait for each version, and how well they did on what was held back.

    Never changed, but for which one is in use.
    """

    number = models.PositiveIntegerField(unique=True, editable=False)
    weights = models.JSONField(default=dict, editable=False)  # served id to weights, in the order of traits
    traits = models.JSONField(default=list, editable=False)
    evaluation = models.JSONField(default=dict, editable=False)
    rows = models.PositiveIntegerField(default=0, editable=False)  # of feedback that it learned from
    in_use = models.BooleanField(default=False, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name = "scorer"
        ordering = ("-number",)
        constraints = [
            models.UniqueConstraint(
                fields=("in_use",), condition=models.Q(in_use=True), name="one_scorer_in_use"
            )
        ]

    def __str__(self) -> str:
        return f"scorer {self.number}"
