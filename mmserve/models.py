"""Access keys: django-rest-knox tokens (digest stored only) with a name, scopes and limits."""

from __future__ import annotations

import re
import uuid

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from knox.models import AbstractAuthToken
from knox.settings import CONSTANTS

from registry.models import check_kinds

# From the most important to the least.
PRIORITIES = ("high", "normal", "low")
MAX_PATTERNS = 50
PATTERN = re.compile(r"[A-Za-z0-9._@/*?-]{1,300}")
SCOPES = ("infer", "manage")


def check_scopes(value: object) -> None:
    """A list of known scopes, at least one."""
    if not isinstance(value, list) or not value or not set(value) <= set(SCOPES):
        raise ValidationError(f"a list of one or more of {', '.join(SCOPES)}", code="scopes")


def check_patterns(value: object) -> None:
    """A list of distinct patterns of names."""
    if (
        not isinstance(value, list)
        or len(value) > MAX_PATTERNS
        or any(not isinstance(one, str) or not PATTERN.fullmatch(one) for one in value)
        or len(set(value)) != len(value)
    ):
        raise ValidationError(
            f"a list of at most {MAX_PATTERNS} distinct names of models, versions or routes; * and ? may stand "
            "for what is left open",
            code="patterns",
        )


def default_scopes() -> list[str]:
    return ["infer"]


class AccessKey(AbstractAuthToken):
    """A client's key. The key itself is shown once, at its creation; here is its SHA-512 digest."""

    # knox makes the digest the primary key; an id of its own keeps the digest out of every URL and log.
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    digest = models.CharField(max_length=CONSTANTS.DIGEST_LENGTH, unique=True, editable=False)
    name = models.CharField(max_length=100)
    team = models.ForeignKey(
        "routing.Team", on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    scopes = models.JSONField(default=default_scopes, validators=[check_scopes])
    requests_per_minute = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)]
    )
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    max_concurrency = models.PositiveIntegerField(
        default=1000, validators=[MinValueValidator(1)], help_text="requests in flight at once"
    )
    priority = models.CharField(
        "highest priority",
        max_length=10,
        default="normal",
        choices=[(name, name) for name in PRIORITIES],
        help_text="the best class that its requests may ask for; those that ask for none are normal, or this",
    )
    allowed_models = models.JSONField(
        default=list,
        blank=True,
        validators=[check_patterns],
        help_text="names of models, versions and routes that it may use, * and ? as in file names; none: all",
    )
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ("-created",)

    def __str__(self) -> str:
        return f"{self.name} ({self.token_key}…)"

    def clean(self) -> None:
        """Django's validators let every empty value pass."""
        check_kinds(self, allowed_models=list)
