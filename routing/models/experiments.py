"""Experiments: their arms, what was measured of each, and the feedback that came for single requests."""

from __future__ import annotations

import re

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from registry.models import Alias, ModelVersion, check_kinds
from routing.core.assignment import ENDPOINTS, FILTERS, UNITS
from routing.core.statistics.metrics import METRICS

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
HOLDOUT_ARM = "holdout"
FILTER_FORMS = (
    ("endpoint", re.compile("|".join(map(re.escape, ENDPOINTS))), f"one of {', '.join(ENDPOINTS)}"),
    ("language", re.compile("[a-z]{2,8}"), "a language like de, in lower case and without a country"),
    ("tags", re.compile("[^=]+=.*"), "name=value, as in the body's metadata"),
)
MAX_GUARDRAILS, MAX_FILTER_VALUES, MAX_STEPS = 10, 50, 10
RAMP = (1, 5, 10, 25, 50)


def check_name(value: str) -> None:
    """Short and lower-case: it stands in records and addresses."""
    if not NAME.fullmatch(value) or value == HOLDOUT_ARM:
        raise ValidationError(
            f"lower-case letters, digits, '.', '_' and '-' only, at most 60; not {HOLDOUT_ARM!r}", code="name"
        )


def check_filters(value: object) -> None:
    """``{"team": ["search"], "tags": ["tier=gold"]}``"""
    if not isinstance(value, dict) or any(name not in FILTERS for name in value):
        raise ValidationError(f"an object with lists for {', '.join(FILTERS)}", code="filters")
    for name, wanted in value.items():
        listed = isinstance(wanted, list) and 0 < len(wanted) <= MAX_FILTER_VALUES
        if not listed or not all(
            isinstance(one, str) and 0 < len(one) <= 200 and one.isprintable() for one in wanted
        ):
            raise ValidationError(f"{name}: a list of 1 to {MAX_FILTER_VALUES} texts", code="filters")
    # What no request can ever be would keep everybody out, and say nothing.
    for name, form, words in FILTER_FORMS:
        wrong = [one for one in value.get(name, ()) if not form.fullmatch(one)]
        if wrong:
            raise ValidationError(f"{name}: {wrong[0][:40]!r} is not {words}", code="filters")


def check_metric(value: str) -> None:
    """One of the metrics' names."""
    if value not in METRICS:
        raise ValidationError(f"{value!r} is none of {', '.join(METRICS)}", code="metric")


def check_guardrails(value: object) -> None:
    """``[{"metric": "ttft_p95", "limit": 0.1}]``: 0.1 is 10% worse than the control."""
    if not isinstance(value, list) or len(value) > MAX_GUARDRAILS:
        raise ValidationError(f"a list of at most {MAX_GUARDRAILS} guardrails", code="guardrails")
    seen = set()
    for one in value:
        if not isinstance(one, dict) or set(one) != {"metric", "limit"} or not isinstance(one["metric"], str):
            raise ValidationError('each guardrail is {"metric": …, "limit": …}', code="guardrails")
        check_metric(one["metric"])
        limit = one["limit"]
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= 10:
            raise ValidationError(
                f"{one['metric']}: the limit is a part of the control's value, above 0 and at most 10",
                code="guardrails",
            )
        if one["metric"] in seen:
            raise ValidationError(f"{one['metric']} is named twice", code="guardrails")
        seen.add(one["metric"])


def check_ramp(value: object) -> None:
    """Rising percentages of the traffic for the largest treatment; an empty list starts at the full shares."""
    steps = value if isinstance(value, list) else None
    if steps is None or len(steps) > MAX_STEPS:
        raise ValidationError(f"a list of at most {MAX_STEPS} percentages", code="ramp")
    if not all(
        isinstance(step, (int, float)) and not isinstance(step, bool) and 0 < step <= 100 for step in steps
    ):
        raise ValidationError("each step is a percentage above 0", code="ramp")
    if steps != sorted(set(steps)):
        raise ValidationError("the steps rise", code="ramp")


def default_ramp() -> list[int]:
    return list(RAMP)


class Kind(models.TextChoices):
    """How the arms get their requests."""

    SPLIT = "split"  # each request is served by one arm
    SHADOW = "shadow"  # all are served by what they ask for; copies of some go to the arms, and nobody waits for them


class State(models.TextChoices):
    """The states of an experiment; ``routing.actions.experiments.TRANSITIONS`` says what follows what."""

    DRAFT = "draft"  # written, not begun: everything can be edited
    RAMPING = "ramping"  # begun; the controller raises the exposure step by step
    RUNNING = "running"  # at its full shares
    PAUSED = "paused"  # everybody gets the control; the units keep their arms for later
    CONCLUDED = "concluded"  # ended by a person, with or without a winner
    ROLLED_BACK = "rolled_back"  # ended by a guardrail, a mismatch or an operator: everybody gets the control
    SHIPPED = "shipped"  # the winner is what the alias means


LIVE = (State.RAMPING, State.RUNNING)
OPEN = (*LIVE, State.PAUSED)


class ExclusionGroup(models.Model):
    """Experiments that never share a unit: each has a slice of the group's own layer of buckets."""

    name = models.CharField(max_length=60, unique=True, validators=[check_name])
    unit = models.CharField(max_length=20, choices=[(unit, unit) for unit in UNITS], default="user")
    salt = models.BigIntegerField(editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Experiment(models.Model):
    """Which version is better for the requests of one model id."""

    name = models.CharField(max_length=60, unique=True, validators=[check_name])
    hypothesis = models.TextField(blank=True, help_text="what is expected, and why")
    kind = models.CharField(
        max_length=20,
        choices=Kind,
        default=Kind.SPLIT,
        help_text="shadow: copies whose answers nobody waits for",
    )
    shadow_percent = models.PositiveSmallIntegerField(
        default=10,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="how much of the traffic a shadow copies",
    )
    shadow_tokens_per_day = models.PositiveIntegerField(
        default=100_000, validators=[MinValueValidator(1)], help_text="tokens that a shadow's copies may take"
    )
    target = models.CharField(
        max_length=300, help_text="the model id or route that clients name: name, name@alias, a route, auto"
    )
    unit = models.CharField(
        max_length=20,
        choices=[(unit, unit) for unit in UNITS],
        default="user",
        help_text="who keeps an arm: an access key, the body's user, the header x-mmserve-session, or each request",
    )
    filters = models.JSONField(
        default=dict,
        blank=True,
        validators=[check_filters],
        help_text='{"team": ["search"], "tags": ["tier=gold"]}',
    )
    holdout_percent = models.PositiveSmallIntegerField(
        default=0, validators=[MaxValueValidator(50)], help_text="units that are kept out for good"
    )
    group = models.ForeignKey(
        ExclusionGroup, null=True, blank=True, on_delete=models.PROTECT, related_name="experiments"
    )
    group_percent = models.PositiveSmallIntegerField(
        default=100,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="its slice of the exclusion group",
    )
    primary_metric = models.CharField(max_length=40, default="e2e", validators=[check_metric])
    smallest_effect = models.FloatField(
        default=0.05,
        validators=[MinValueValidator(0.001), MaxValueValidator(10)],
        help_text="the smallest change worth knowing of, as a part of the control's value",
    )
    alpha = models.FloatField(
        default=0.05,
        validators=[MinValueValidator(0.0001), MaxValueValidator(0.2)],
        help_text="the chance of seeing a difference where there is none, over all looks together",
    )
    score_name = models.CharField(
        max_length=60,
        blank=True,
        help_text="the named score of POST /v1/feedback that the metric score reads",
    )
    guardrails = models.JSONField(
        default=list,
        blank=True,
        validators=[check_guardrails],
        help_text='[{"metric": "error_rate", "limit": 0.2}]: at most 20% worse than the control',
    )
    ramp = models.JSONField(
        default=default_ramp,
        blank=True,
        validators=[check_ramp],
        help_text="percent of the traffic for the largest treatment, step by step",
    )
    step_minutes = models.PositiveIntegerField(
        default=60, validators=[MaxValueValidator(43_200)], help_text="how long each step lasts at least"
    )
    step_requests = models.PositiveIntegerField(
        default=100,
        validators=[MaxValueValidator(10**9)],
        help_text="requests that each arm has in each step at least",
    )
    state = models.CharField(max_length=20, choices=State, default=State.DRAFT, editable=False)
    state_reason = models.TextField(blank=True, editable=False)
    # Where a pause was taken, so that it goes on from there.
    paused_from = models.CharField(max_length=20, blank=True, editable=False)
    exposure = models.FloatField(default=0.0, editable=False)  # part of the traffic that is in it
    ramp_step = models.SmallIntegerField(default=-1, editable=False)
    # Another ratio between the arms begins another phase, and with it the measuring anew.
    phase = models.PositiveIntegerField(default=1, editable=False)
    salt = models.BigIntegerField(editable=False)
    deal = models.JSONField(default=list, editable=False)  # routing.core.assignment.Deal
    group_low = models.PositiveIntegerField(null=True, editable=False)
    group_high = models.PositiveIntegerField(null=True, editable=False)
    alias = models.ForeignKey(Alias, null=True, blank=True, on_delete=models.SET_NULL, editable=False)
    winner = models.ForeignKey("Arm", null=True, on_delete=models.SET_NULL, editable=False, related_name="+")
    revision = models.PositiveIntegerField(default=1, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    started_at = models.DateTimeField(null=True, editable=False)
    step_at = models.DateTimeField(null=True, editable=False)
    # What each arm had of the phase's requests when the step began, by name; what is missing is none.
    requests_before_step = models.JSONField(default=dict, editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Django's validators let every empty value pass."""
        check_kinds(self, filters=dict, guardrails=list, ramp=list)

    @property
    def subject(self) -> str:
        """How events name it."""
        return f"experiment:{self.name}"


class Arm(models.Model):
    """One version with its share; the control is what the others are compared with."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="arms")
    name = models.CharField(max_length=60, validators=[check_name])
    # The version may be deleted once the experiment has ended; its id stays.
    version = models.ForeignKey(ModelVersion, null=True, on_delete=models.SET_NULL, related_name="arms")
    served_id = models.CharField(max_length=320, editable=False)
    weight = models.PositiveSmallIntegerField(
        default=50,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="its share, in proportion",
    )
    is_control = models.BooleanField(default=False)

    class Meta:
        ordering = ("-is_control", "id")
        constraints = [
            models.UniqueConstraint(fields=("experiment", "name"), name="one_arm_of_a_name"),
            models.UniqueConstraint(
                fields=("experiment",), condition=models.Q(is_control=True), name="one_control"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.experiment.name}/{self.name}"


class ArmTotals(models.Model):
    """What was measured of one arm in one phase: routing.core.statistics.totals.Totals, as bytes."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="totals")
    phase = models.PositiveIntegerField()
    arm = models.CharField(max_length=60)  # by name; "holdout" too
    data = models.BinaryField(default=bytes)
    requests = models.BigIntegerField(default=0)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("experiment", "phase", "arm"), name="one_total_of_an_arm")
        ]

    def __str__(self) -> str:
        return f"{self.arm} in phase {self.phase}"


class PhaseUnits(models.Model):
    """The sample of distinct units of one phase: routing.core.statistics.units.UnitSample, as bytes."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="units")
    phase = models.PositiveIntegerField()
    data = models.BinaryField(default=bytes)
    distinct = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=("experiment", "phase"), name="one_sample_of_a_phase")]

    def __str__(self) -> str:
        return f"phase {self.phase}"


class Exposure(models.Model):
    """One request that was in an experiment, kept for as long as feedback for it may come."""

    request_id = models.CharField(max_length=40, primary_key=True)
    at = models.DateTimeField(db_index=True)
    key = models.CharField(max_length=40)
    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="+")
    phase = models.PositiveIntegerField()
    arm = models.CharField(max_length=60)
    served_id = models.CharField(max_length=320)  # after a fallback another than the arm's
    unit = models.CharField(max_length=16)  # hashed

    def __str__(self) -> str:
        return f"{self.request_id} in {self.arm}"


class Feedback(models.Model):
    """A rating (``name`` is "rating") or a named score for one request; the last one counts."""

    request_id = models.CharField(max_length=40)
    name = models.CharField(max_length=60)
    value = models.FloatField()
    key = models.CharField(max_length=40)
    at = models.DateTimeField(auto_now=True, db_index=True)
    # What an experiment has counted of it; null until the request's exposure is known.
    counted = models.FloatField(null=True)
    pending = models.BooleanField(default=True, db_index=True)
    # What a scorer learns from: of a rating, what answered and the prompt's traits, copied while the decision is kept.
    served_id = models.CharField(max_length=320, default="")
    traits = models.JSONField(null=True)

    class Meta:
        verbose_name_plural = "feedback"
        constraints = [models.UniqueConstraint(fields=("request_id", "name"), name="one_value_of_a_name")]

    def __str__(self) -> str:
        return f"{self.name} {self.value} for {self.request_id}"
