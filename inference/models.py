"""DOING it: deployments as wished, nodes, devices and replicas as observed."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from inference.capacity.abilities import QUANTIZATIONS, SPECULATIONS
from inference.capacity.eta import PastLoad, remembered, usual_s
from inference.capacity.ladder import LADDER, SERVING
from inference.capacity.placement import SPREAD, STRATEGIES
from inference.capacity.schedule import parse_days, zone_of
from registry.models import ModelVersion

# From the most important to the least.
PRIORITY_CLASSES = ("high", "normal", "low")


MAX_PROMPTS, MAX_PROMPT_CHARS = 8, 2000


def check_prompts(value: Any) -> None:
    """A short list of short texts."""
    if not isinstance(value, list) or len(value) > MAX_PROMPTS:
        raise ValidationError(f"a list of at most {MAX_PROMPTS} texts")
    if not all(isinstance(text, str) and 0 < len(text) <= MAX_PROMPT_CHARS for text in value):
        raise ValidationError(f"each a text of 1 to {MAX_PROMPT_CHARS} characters")


def check_days(value: str) -> None:
    """Days that inference.capacity.schedule can read."""
    try:
        parse_days(value)
    except ValueError as error:
        raise ValidationError(str(error)) from error


def check_zone(value: str) -> None:
    """A time zone that this machine knows."""
    try:
        zone_of(value)
    except (LookupError, ValueError, OSError) as error:
        raise ValidationError(
            f"{value[:50]!r} is no time zone; write one like Europe/Berlin, or UTC"
        ) from error


class Deployment(models.Model):
    """How one version is to be served: how many replicas, with which engine options and bounds."""

    name = models.SlugField(max_length=120, unique=True, help_text="also the prefix of its RQ queues")
    version = models.OneToOneField(ModelVersion, on_delete=models.PROTECT, related_name="deployment")
    replicas = models.PositiveIntegerField("desired replicas", default=0)
    dtype = models.CharField(
        max_length=20,
        default="auto",
        choices=[(name, name) for name in ("auto", "bfloat16", "float16", "float32")],
    )
    context_length = models.PositiveIntegerField(
        null=True, blank=True, help_text="tokens; empty: the model's own"
    )
    max_streams = models.PositiveIntegerField(
        default=64,
        validators=[MinValueValidator(1), MaxValueValidator(4096)],
        help_text="requests in one running batch",
    )
    kv_cache_bytes = models.PositiveBigIntegerField(
        default=512 * 2**20,
        validators=[MinValueValidator(2**20)],
        help_text="memory for the KV cache, on each of its devices",
    )
    prefix_caching = models.BooleanField(default=True)
    in_process = models.BooleanField(
        default=True, help_text="off: the engine core gets a process of its own (big GPUs)"
    )
    max_batched_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(2**20)],
        help_text="tokens of all requests in one engine step; empty: vLLM's own choice",
    )
    tensor_parallel = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(64)],
        help_text="GPUs of one kind, on one node, that share a replica",
    )
    quantization = models.CharField(
        "quantization on load",
        max_length=40,
        blank=True,
        choices=[(name, name) for name in QUANTIZATIONS],
        help_text="empty: the weights as they are stored",
    )
    speculation = models.CharField(
        "speculative decoding",
        max_length=20,
        blank=True,
        choices=[(name, name) for name in SPECULATIONS],
        help_text="ngram guesses what follows from what the prompt has said already, draft_model has a smaller model "
        "guess; the text stays the same",
    )
    draft = models.ForeignKey(
        ModelVersion,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="drafts_for",
        verbose_name="draft model",
        help_text="a small version with the same vocabulary, which guesses for draft_model; in the same KV cache",
    )
    speculative_tokens = models.PositiveSmallIntegerField(
        default=4,
        validators=[MinValueValidator(1), MaxValueValidator(32)],
        help_text="tokens that are guessed at once",
    )
    guided_decoding = models.CharField(
        max_length=20,
        default="guidance",
        choices=[(name, name) for name in ("guidance", "xgrammar", "off")],
        help_text="what holds answers to a JSON schema, a regex or a grammar; off: such requests are refused",
    )
    queue_bound = models.PositiveIntegerField(
        default=512,
        validators=[MinValueValidator(1)],
        help_text="waiting requests beyond which clients get 429",
    )
    hold_bound = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="of these, how many may wait while it is not up; empty: all",
    )
    deadline_s = models.PositiveIntegerField(
        "deadline (s)", default=600, validators=[MinValueValidator(1)], help_text="a request's whole life"
    )
    placement = models.CharField(
        max_length=10,
        default=SPREAD,
        choices=[(name, name) for name in STRATEGIES],
        help_text="spread: on the device with most room; pack: with least, so that large rooms stay whole",
    )
    on_demand = models.BooleanField(
        default=True, help_text="may sleep while nobody asks and others need its memory; a request wakes it"
    )
    pinned = models.BooleanField(default=False, help_text="never put to sleep")
    priority_class = models.CharField(
        max_length=10,
        default="normal",
        choices=[(name, name) for name in PRIORITY_CLASSES],
        help_text="one of a lower class never puts one of a higher class to sleep",
    )
    min_residency_s = models.PositiveIntegerField(
        "minimum residency (s)", default=10, help_text="a busy one stays up for so long at least: no thrash"
    )
    max_wait_s = models.PositiveIntegerField(
        "longest wait for others (s)",
        default=30,
        help_text="what is busy in its place is drained for it after so long, or sooner where loads are quick",
    )
    idle_ttl_s = models.PositiveIntegerField(
        "idle time to sleep (s)",
        null=True,
        blank=True,
        help_text="empty: stays up until others need the memory",
    )
    preload = models.BooleanField(
        default=False, help_text="loaded whenever a node starts, before all others; pin it to keep it up"
    )
    warmup_prompts = models.JSONField(
        default=list,
        blank=True,
        validators=[check_prompts],
        help_text='answered after a load, before it is ready: a list of texts, ["Hello"]',
    )
    # Since when a schedule keeps it hot: as good as pinned.
    hot_since = models.DateTimeField(null=True, blank=True, editable=False)
    # Swapped out: wished for, not up. A request, or ``wanted_at``, brings it back.
    asleep = models.BooleanField(default=False, editable=False)
    wanted_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Why the controller has given up loading it, until somebody asks for a load again.
    failure = models.TextField(blank=True, editable=False)
    # What the stages of its latest loads took (inference.capacity.eta), oldest first.
    past_loads = models.JSONField(default=list, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    @property
    def desired(self) -> int:
        """Replicas that should be up now."""
        return 0 if self.asleep else self.replicas

    @property
    def loaded_versions(self) -> list[ModelVersion]:
        """Whose files its engines read: its version's, and its draft's."""
        return [self.version, *([self.draft] if self.draft else [])]

    @property
    def loads(self) -> list[PastLoad]:
        """Its latest loads, oldest first."""
        return remembered(self.past_loads)

    @property
    def usual_load_s(self) -> float | None:
        """What it usually takes to come up, once there is room; None before its first load."""
        return usual_s([replace(load, wait_s=0.0) for load in self.loads])


class Schedule(models.Model):
    """When a deployment is kept hot: loaded before, and pinned until the end."""

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="schedules")
    days = models.CharField(
        max_length=40, default="mon-fri", validators=[check_days], help_text="daily, or days like mon-fri,sun"
    )
    start = models.TimeField("from", help_text="by the zone's clocks")
    end = models.TimeField("to", help_text="at or before the start: on the next day")
    timezone = models.CharField(
        "time zone", max_length=60, default="UTC", validators=[check_zone], help_text="like Europe/Berlin"
    )

    class Meta:
        ordering = ("pk",)
        verbose_name = "keep hot"
        verbose_name_plural = "keep hot"

    def __str__(self) -> str:
        return f"{self.days} {self.start:%H:%M}–{self.end:%H:%M} {self.timezone}"


class Node(models.Model):
    """One machine or pod that runs `manage.py node`."""

    name = models.CharField(max_length=200, unique=True)
    last_seen = models.DateTimeField(null=True, blank=True)
    template_ready = models.BooleanField(default=False)
    revision = models.PositiveBigIntegerField(default=0)
    # Of the process that speaks for it: what an earlier one still writes is refused.
    epoch = models.UUIDField(default=uuid.uuid4, editable=False)
    host_budget_bytes = models.BigIntegerField(
        default=0, help_text="host memory that weights may sleep in (rung asleep)"
    )
    leaving = models.BooleanField(default=False, help_text="it was asked to stop: nothing is placed there")
    # registry.cache: names of the files that lie here, where the store is elsewhere
    files = models.JSONField(default=list, editable=False)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Device(models.Model):
    """Memory that replicas are placed in: host memory (``cpu:0``) or a GPU (``gpu:0``)."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="devices")
    name = models.CharField(max_length=40)
    kind = models.CharField(max_length=100)
    total_bytes = models.BigIntegerField()
    budget_bytes = models.BigIntegerField(help_text="what engines may take of it")
    used_bytes = models.BigIntegerField(default=0, editable=False)  # by everybody
    # What engines cannot have, though the budget promises it.
    used_by_others_bytes = models.BigIntegerField(default=0, editable=False)
    # By pid, as its node last wrote them down: engines', and on GPUs others' as well.
    processes = models.JSONField(default=dict, editable=False)
    # inference.capacity.abilities: what engines on it can do, as its node found
    abilities = models.JSONField(default=dict, editable=False)

    class Meta:
        ordering = ("node", "name")
        constraints = [models.UniqueConstraint(fields=("node", "name"), name="one_device_of_a_name")]

    def __str__(self) -> str:
        return f"{self.node.name}/{self.name}"


class ReplicaState(models.TextChoices):
    """The life of a replica."""

    PENDING = "pending"  # reserved on a device, the node has not started it
    LOADING = "loading"  # engine process up, weights on the way in
    READY = "ready"  # takes jobs
    DRAINING = "draining"  # takes no more, finishes what runs
    STOPPED = "stopped"  # ended as asked
    FAILED = "failed"  # ended by itself; reason and log say why


ALIVE = (ReplicaState.PENDING, ReplicaState.LOADING, ReplicaState.READY, ReplicaState.DRAINING)


class Replica(models.Model):
    """One engine process, from its reservation to its end."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="replica_set")
    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="replicas")
    more_devices = models.ManyToManyField(
        Device, related_name="shared_replicas", blank=True, help_text="beside the first: tensor parallel"
    )
    state = models.CharField(max_length=20, choices=ReplicaState, default=ReplicaState.PENDING, db_index=True)
    stop_requested = models.BooleanField(default=False)
    reason = models.TextField(blank=True)
    superseded = models.BooleanField(
        default=False, help_text="a later load was asked for: no longer counts as a failed try"
    )
    reserved_bytes = models.BigIntegerField(help_text="on each of its devices")
    # Its way down (inference.capacity.ladder): the rungs that its engine has, where it is, where it is to be.
    rungs = models.JSONField(default=list, editable=False)
    rung = models.CharField(max_length=20, default=SERVING, choices=[(name, name) for name in LADDER])
    wanted_rung = models.CharField(max_length=20, default=SERVING, choices=[(name, name) for name in LADDER])
    serving_bytes = models.BigIntegerField(default=0, help_text="reserved on each device while it serves")
    host_bytes = models.BigIntegerField(default=0, help_text="host memory that it rests in")
    wake_seconds = models.JSONField(default=dict, editable=False)  # by the rung that it came back from
    pid = models.PositiveIntegerField(null=True, blank=True)
    log_path = models.CharField(max_length=500, blank=True)
    log_tail = models.TextField(blank=True)
    # From the first request for it to its place on a device.
    waited_s = models.FloatField(default=0.0, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    # Its files were there, and its engine process was started.
    started_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    load_seconds = models.FloatField(null=True, blank=True)

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.deployment.name}/{str(self.id)[:8]}"


class LoadObservation(models.Model):
    """What one load was predicted to take, and took: bytes by part, on each of its devices."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="load_observations")
    replica = models.OneToOneField(Replica, on_delete=models.SET_NULL, null=True, related_name="observation")
    device_kind = models.CharField(max_length=100)
    quantization = models.CharField("quantization on load", max_length=40, blank=True)
    # The options that change what a replica takes, and their digest to find them by.
    options = models.JSONField(default=dict)
    options_key = models.CharField(max_length=16)
    calculated = models.JSONField(default=dict)  # from the checkpoint alone
    predicted = models.JSONField(default=dict)  # corrected by earlier loads: what was reserved
    measured = models.JSONField(default=dict)
    # Of the prediction, as a share of what was measured; positive: too much was predicted.
    error = models.FloatField()
    peak_streams = models.PositiveIntegerField(default=0)
    at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ("-at", "-pk")
        indexes = [
            models.Index(fields=("version", "device_kind", "-at"), name="observations_of_a_version"),
            models.Index(fields=("device_kind", "quantization", "-at"), name="observations_of_a_kind"),
        ]

    def __str__(self) -> str:
        return f"{self.version} on {self.device_kind}"

    @property
    def batch_was_full(self) -> bool:
        """Whether all streams ran at once: then its activations are known, too."""
        return self.peak_streams >= self.options.get("max_streams", 0)


def with_last_log(deployments: models.QuerySet[Deployment]) -> models.QuerySet[Deployment]:
    """Deployments with the last lines of the log of the load that failed last, if they have not been up since."""
    failed = Replica.objects.filter(
        deployment=models.OuterRef("pk"), state=ReplicaState.FAILED, superseded=False
    ).order_by("-ended_at")
    return deployments.annotate(last_log=models.Subquery(failed.values("log_tail")[:1]))
