"""WHAT can be served: models, their versions, the files of each, and the names that point at them."""

from __future__ import annotations

import re
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, URLValidator
from django.db import models
from django.db.models.functions import Now

from mmserve.errors import Conflict

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
# With "@" and a label it is an event's subject; its slug is part of a folder's name.
MAX_MODEL_NAME_CHARS = 190
CAPABILITIES = ("completion", "chat", "embedding", "tools", "json", "vision")
MAX_TAGS, MAX_TAG_CHARS, MAX_LINKS, MAX_OPTIONS = 50, 100, 20, 100
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_TARGET_CHARS = 301
# With the model itself as many as anybody tries (routing.core.chain.CHAIN).
MAX_FALLBACKS = 7
# Why a request goes to somebody else (routing.core.route.Cause).
CAUSES = ("error", "timeout", "overload", "context", "breaker", "budget")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=-]{0,99}")


def check_model_name(value: str) -> None:
    """Letters, digits, ``. _ -``, in parts joined by ``/``; ``@`` stands before a version or alias."""
    if len(value) > MAX_MODEL_NAME_CHARS:
        raise ValidationError(f"at most {MAX_MODEL_NAME_CHARS} characters", code="name")
    if not MODEL_NAME.fullmatch(value) or value == "auto":
        raise ValidationError(
            "letters, digits, '.', '_' and '-' only, in parts joined by '/'; not 'auto'", code="name"
        )


def check_label(value: str) -> None:
    """A version's or alias's name."""
    if not LABEL.fullmatch(value):
        raise ValidationError("letters, digits, '.', '_' and '-' only", code="name")


def check_target(value: str) -> None:
    """``name``, ``name@version`` or ``name@alias``."""
    name, at, label = value.partition("@")
    if not MODEL_NAME.fullmatch(name) or name == "auto" or (at and not LABEL.fullmatch(label)):
        raise ValidationError("a model's name, name@version or name@alias", code="target")


def check_fallbacks(value: object) -> None:
    """A short list of distinct targets."""
    if not isinstance(value, list) or len(value) > MAX_FALLBACKS:
        raise ValidationError(f"a list of at most {MAX_FALLBACKS} models", code="fallbacks")
    for place, target in enumerate(value):
        if not isinstance(target, str) or len(target) > MAX_TARGET_CHARS:
            raise ValidationError("a list of names, name@version or name@alias", code="fallbacks")
        check_target(target)
        if target in value[:place]:
            raise ValidationError(f"{target!r} stands twice", code="fallbacks")


def check_causes(value: object) -> None:
    """A list of distinct causes."""
    if not isinstance(value, list) or any(one not in CAUSES or value.count(one) > 1 for one in value):
        raise ValidationError(f"a list of distinct causes out of {', '.join(CAUSES)}", code="causes")


def check_capabilities(value: object) -> None:
    """A list of what the gateway can ask a version for."""
    if not isinstance(value, list) or any(name not in CAPABILITIES for name in value):
        raise ValidationError(f"a list of {', '.join(CAPABILITIES)}", code="capabilities")


def check_tags(value: object) -> None:
    """A short list of distinct words, ``key=value`` among them (``region=eu``)."""
    if (
        not isinstance(value, list)
        or len(value) > MAX_TAGS
        or any(not isinstance(tag, str) or not TAG.fullmatch(tag) for tag in value)
        or len(set(value)) != len(value)
    ):
        raise ValidationError(
            f"a list of at most {MAX_TAGS} distinct tags of letters, digits and '._:/=-', each at most "
            f"{MAX_TAG_CHARS} characters",
            code="tags",
        )


def check_links(value: object) -> None:
    """A list of ``{"title", "url"}``; only http and https, since the admin shows them."""
    entries = value if isinstance(value, list) else None
    if entries is None or len(entries) > MAX_LINKS:
        raise ValidationError(f"a list of at most {MAX_LINKS} links", code="links")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"title", "url"}:
            raise ValidationError('each link is {"title": …, "url": …}', code="links")
        if not all(isinstance(text, str) and 0 < len(text) <= 500 for text in entry.values()):
            raise ValidationError("title and url are strings of 1 to 500 characters", code="links")
        try:
            URLValidator(schemes=["http", "https"])(entry["url"])
        except ValidationError as error:
            # Under a code of its own: "invalid" would become "Value must be valid JSON".
            raise ValidationError(
                f"{entry['url'][:100]!r} is no http or https address", code="links"
            ) from error


def check_engine_options(value: object) -> None:
    """An object of options by name; the engine's own bounds are checked where it is served."""
    if not isinstance(value, dict) or len(value) > MAX_OPTIONS:
        raise ValidationError(f"an object with at most {MAX_OPTIONS} options", code="engine_options")


def check_kinds(row: models.Model, **kinds: type) -> None:
    """Each JSON field holds a value of its kind, empty or not."""
    for name, kind in kinds.items():
        if not isinstance(getattr(row, name), kind):
            raise ValidationError({name: f"not {'a list' if kind is list else 'an object'}"})


class Model(models.Model):
    """A model as clients name it; what answers is a version of it."""

    name = models.CharField(max_length=200, unique=True, validators=[check_model_name])
    display_name = models.CharField(max_length=200, blank=True)
    description = models.TextField(blank=True)
    owner = models.CharField(max_length=200, blank=True, default="mmserve")
    team = models.CharField(max_length=200, blank=True)
    licence = models.CharField(max_length=200, blank=True)
    tags = models.JSONField(default=list, blank=True, validators=[check_tags])
    links = models.JSONField(default=list, blank=True, validators=[check_links])
    # Both run what the files bring: off unless an operator says so for this model.
    allow_pickle = models.BooleanField(
        default=False, help_text="take weights stored as pickles: loading one can run any code in it"
    )
    trust_remote_code = models.BooleanField(
        default=False, help_text="run Python code that comes with the model's files"
    )
    # Who stands in for it, in this order; what each means is looked up in each configuration, as aliases move.
    fallbacks = models.JSONField(
        default=list,
        blank=True,
        validators=[check_fallbacks],
        help_text="name, name@version or name@alias",
    )
    first_token_ms = models.PositiveIntegerField(
        "longest wait for the first token (ms)",
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="then the next fallback is tried; empty: as long as the request may take",
    )
    no_fallback_on = models.JSONField(
        default=list, blank=True, validators=[check_causes], help_text="after these no fallback is tried"
    )
    # Who asked for its deletion while it was served: it goes once its engines are gone.
    deletion_asked_by = models.CharField(max_length=200, blank=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Django's validators let every empty value pass."""
        check_kinds(self, tags=list, links=list, fallbacks=list, no_fallback_on=list)
        if self.name in self.fallbacks:
            raise ValidationError({"fallbacks": f"{self.name!r} cannot stand in for itself"})

    @property
    def slug(self) -> str:
        """The name where ``/`` cannot stand: in a folder's name, in a label."""
        return self.name.replace("/", "--")


class VersionState(models.TextChoices):
    """The states of a version; ``registry.actions.TRANSITIONS`` says what follows what."""

    REGISTERED = "registered"  # known, its files not asked for
    FETCHING = "fetching"  # an ops job brings or converts its files
    READY = "ready"  # its files are whole and their hashes known
    FAILED = "failed"  # the last fetch failed; state_reason says why
    ARCHIVED = "archived"  # kept for history, not to be loaded


PUBLISHED = (VersionState.READY, VersionState.ARCHIVED)
FROZEN_FIELDS = ("model_id", "version", "source_uri", "path", "facts", "engine_options")


class ModelVersion(models.Model):
    """One immutable set of files with the facts read from them, prices and engine options."""

    model = models.ForeignKey(Model, on_delete=models.PROTECT, related_name="versions")
    version = models.CharField(max_length=100, validators=[check_label])
    description = models.TextField(blank=True)
    source_uri = models.CharField(
        max_length=500,
        help_text="file:///folder, s3://bucket/prefix, hf://org/name@revision, https://… or pypi://…",
    )
    state = models.CharField(
        max_length=20, choices=VersionState, default=VersionState.REGISTERED, editable=False
    )
    state_reason = models.TextField(blank=True, editable=False)
    # {"stage", "done_bytes", "total_bytes", "bytes_per_s", "eta_s", "files", "at"} while an ops job works on it
    progress = models.JSONField(default=dict, blank=True, editable=False)
    # folder below the store's root, once the files are whole
    path = models.CharField(max_length=500, blank=True, editable=False)
    # registry.facts.Facts: architecture, parameters, layers, heads, context_length, dtype, ...
    facts = models.JSONField(default=dict, blank=True, editable=False)
    capabilities = models.JSONField(
        default=list, blank=True, validators=[check_capabilities], help_text=", ".join(CAPABILITIES)
    )
    tags = models.JSONField(default=list, blank=True, validators=[check_tags])
    # inference.protocol.EngineOptions by name: what a new deployment of this version begins with
    engine_options = models.JSONField(default=dict, blank=True, validators=[check_engine_options])
    # How often its files were asked for: a job of an earlier attempt stops when it sees another number.
    attempt = models.PositiveIntegerField(default=0, editable=False)
    price_input = models.DecimalField(
        "price per million input tokens",
        max_digits=12,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
    )
    price_cached_input = models.DecimalField(
        "price per million cached input tokens",
        max_digits=12,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
    )
    price_output = models.DecimalField(
        "price per million output tokens",
        max_digits=12,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
    )
    price_device_hour = models.DecimalField(
        "price per device-hour",
        max_digits=12,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
    )
    # Who asked for its deletion while it was served.
    deletion_asked_by = models.CharField(max_length=200, blank=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    ready_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = "version"
        ordering = ("model__name", "-created_at")
        constraints = [models.UniqueConstraint(fields=("model", "version"), name="one_version_of_a_name")]

    def __str__(self) -> str:
        return self.served_id

    def clean(self) -> None:
        """Django's validators let every empty value pass."""
        check_kinds(self, capabilities=list, tags=list, engine_options=dict)

    def save(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_to_change_what_was_published()
        super().save(*args, **kwargs)

    def _refuse_to_change_what_was_published(self) -> None:
        """A version that was ready once means the same files and facts for ever."""
        stored = type(self).objects.filter(pk=self.pk, state__in=PUBLISHED).values(*FROZEN_FIELDS).first()
        if stored is None:
            return
        changed = [name for name in FROZEN_FIELDS if stored[name] != getattr(self, name)]
        if changed:
            raise Conflict(
                f"{self.served_id} is published: its {', '.join(changed)} cannot change; make a new version",
                param=changed[0],
            )

    @property
    def served_id(self) -> str:
        """``name@version``: the id that is true for ever."""
        return f"{self.model.name}@{self.version}"


class VersionFile(models.Model):
    """One line of a version's manifest."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=500)
    size_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)

    class Meta:
        verbose_name = "file"
        ordering = ("path",)
        constraints = [models.UniqueConstraint(fields=("version", "path"), name="one_file_of_a_path")]

    def __str__(self) -> str:
        return self.path


class Alias(models.Model):
    """A movable name for a version; moved by compare-and-set on ``revision``."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=100, validators=[check_label])
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="aliases")
    is_default = models.BooleanField(default=False, help_text="what the model's bare name means")
    revision = models.PositiveIntegerField(default=1, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "aliases"
        ordering = ("model__name", "name")
        constraints = [
            models.UniqueConstraint(fields=("model", "name"), name="one_alias_of_a_name"),
            models.UniqueConstraint(
                fields=("model",), condition=models.Q(is_default=True), name="one_default_alias"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model.name}@{self.name}"


class Event(models.Model):
    """Append-only: who did what to which thing, and why."""

    at = models.DateTimeField(db_default=Now(), db_index=True, editable=False)
    kind = models.CharField(max_length=60)
    subject = models.CharField(max_length=300, db_index=True)
    actor = models.CharField(max_length=200)
    reason = models.TextField(blank=True)
    data = models.JSONField(default=dict)
    revision = models.PositiveBigIntegerField()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.kind} {self.subject} by {self.actor}"

    @property
    def change(self) -> str:
        """What its data say, in a line: ``1 → 2``, ``price_input: 0.15 → 0.2``."""
        data = dict(self.data)
        moved = []
        if {"from", "to"} & set(data):
            before, after = data.pop("from", None), data.pop("to", None)
            if isinstance(before, dict) and isinstance(after, dict):
                # Several fields at once: of those that changed, what each was and is.
                pairs = [(name, before.get(name), after.get(name)) for name in sorted({**before, **after})]
                moved = [f"{name}: {_said(old)} → {_said(new)}" for name, old, new in pairs if old != new]
            else:
                moved = [f"{_said(before)} → {_said(after)}"]
        if self.kind.startswith("alias."):
            return ", ".join(moved)
        changed = [
            f"{name}: {_said(value['from'])} → {_said(value['to'])}"
            for name, value in data.items()
            if isinstance(value, dict) and set(value) == {"from", "to"}
        ]
        plain = [
            f"{name}: {_said(value)}" for name, value in data.items() if value and not isinstance(value, dict)
        ]
        return ", ".join(moved + changed + plain)

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise Conflict("events are append-only: write another one")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise Conflict("events are append-only: they cannot be deleted")


def _said(value: Any) -> str:
    """A value of an event's data as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(part)}" for name, part in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None or value == "" else str(value)


class IdempotentRequest(models.Model):
    """What a POST with an ``Idempotency-Key`` was answered, so that asking again changes nothing."""

    actor = models.CharField(max_length=200)
    key = models.CharField(max_length=255)
    # SHA-256 of method, path and body: the same key for another request is the client's mistake.
    fingerprint = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True)  # null while the first one runs
    body = models.JSONField(null=True)
    created_at = models.DateTimeField(db_default=Now(), db_index=True, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=("actor", "key"), name="one_answer_a_key")]

    def __str__(self) -> str:
        return f"{self.actor} {self.key}"


class ConfigRevision(models.Model):
    """One row: the monotonic number of the configuration that everyone should run."""

    number = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return str(self.number)
