"""Rows of the registry as JSON."""

from __future__ import annotations

import datetime
import re

from rest_framework import serializers

from registry.actions.models import FIELDS
from registry.actions.versions import EDITABLE, PRICES
from registry.models import (
    CAUSES,
    MAX_FALLBACKS,
    MAX_MODEL_NAME_CHARS,
    MAX_TARGET_CHARS,
    Alias,
    Event,
    Model,
    ModelVersion,
    VersionFile,
    check_label,
    check_model_name,
)
from registry.rest import QuerySerializer, StrictSerializer, reason_field

ZONE_WITH_SPACE = re.compile(r"(?<=T)(.*) (\d\d:?\d\d)$")
MAX_REVISION = 2**31 - 1


class MomentField(serializers.DateTimeField):
    """ISO 8601; UTC where it names no zone. In a query an unescaped ``+`` arrives as a space."""

    def to_internal_value(self, value: object) -> datetime.datetime:
        """``2026-11-24T14:03:00+01:00`` or ``2026-11-24 14:03``."""
        if isinstance(value, str):
            value = ZONE_WITH_SPACE.sub(r"\1+\2", value)
        return super().to_internal_value(value)


class ModelSerializer(StrictSerializer, serializers.ModelSerializer):
    """A model."""

    # Whether the name is taken is the action's to say (409).
    name = serializers.CharField(max_length=MAX_MODEL_NAME_CHARS, validators=[check_model_name])
    fallbacks = serializers.ListField(
        child=serializers.CharField(max_length=MAX_TARGET_CHARS), max_length=MAX_FALLBACKS, required=False
    )
    no_fallback_on = serializers.ListField(
        child=serializers.ChoiceField(CAUSES), max_length=len(CAUSES), required=False
    )
    reason = reason_field()

    class Meta:
        model = Model
        fields = (
            "id",
            "name",
            "slug",
            *FIELDS,
            "deletion_asked_by",
            "created_at",
            "reason",
        )
        read_only_fields = ("slug", "deletion_asked_by", "created_at")


class FileSerializer(serializers.ModelSerializer):
    """One line of the manifest."""

    class Meta:
        model = VersionFile
        fields = ("path", "size_bytes", "sha256")


class VersionSerializer(StrictSerializer, serializers.ModelSerializer):
    """A version."""

    served_id = serializers.CharField(read_only=True)
    files = FileSerializer(many=True, read_only=True)
    reason = reason_field()

    class Meta:
        model = ModelVersion
        fields = (
            "id",
            "served_id",
            "model",
            "version",
            "description",
            "source_uri",
            "state",
            "state_reason",
            "progress",
            "facts",
            "capabilities",
            "tags",
            "engine_options",
            *PRICES,
            "files",
            "deletion_asked_by",
            "created_at",
            "ready_at",
            "reason",
        )
        read_only_fields = (
            "state",
            "state_reason",
            "progress",
            "facts",
            "deletion_asked_by",
            "created_at",
            "ready_at",
        )
        # One version of a name is the action's to say (409).
        validators: list[object] = []


class VerifySerializer(StrictSerializer):
    """``repair``: fetch damaged files from the source again."""

    repair = serializers.BooleanField(required=False, default=False)
    reason = reason_field()


class DuplicateSerializer(VersionSerializer):
    """``version`` is the new one's name; every other field replaces the original's."""

    class Meta(VersionSerializer.Meta):
        fields = ("version", *sorted(EDITABLE), "reason")
        read_only_fields = ()


class AliasSerializer(serializers.ModelSerializer):
    """An alias as it stands."""

    class Meta:
        model = Alias
        fields = ("id", "model", "name", "version", "is_default", "revision", "updated_at")
        read_only_fields = fields


class PromoteSerializer(StrictSerializer):
    """``version`` by its name; ``alias`` is the default one if left out."""

    version = serializers.CharField(max_length=100, validators=[check_label])
    alias = serializers.CharField(max_length=100, validators=[check_label], required=False, default=None)
    expected_revision = serializers.IntegerField(
        min_value=0, max_value=MAX_REVISION, required=False, default=None
    )
    reason = reason_field()


class RollbackSerializer(StrictSerializer):
    """``alias`` is the default one if left out."""

    alias = serializers.CharField(max_length=100, validators=[check_label], required=False, default=None)
    expected_revision = serializers.IntegerField(
        min_value=0, max_value=MAX_REVISION, required=False, default=None
    )
    reason = reason_field()


class EventSerializer(serializers.ModelSerializer):
    """An event."""

    class Meta:
        model = Event
        fields = ("id", "at", "kind", "subject", "actor", "reason", "data", "revision")
        read_only_fields = fields


class HistoryQuery(QuerySerializer):
    """The query of a model's history."""

    at = MomentField(required=False, default=None)
    before = serializers.IntegerField(min_value=1, max_value=2**63 - 1, required=False, default=None)
    limit = serializers.IntegerField(min_value=1, max_value=1000, required=False, default=100)


class HistorySerializer(serializers.Serializer):
    """What the aliases meant at ``at``, and the events until then."""

    object = serializers.ChoiceField(["list"])
    model = serializers.CharField()
    at = serializers.DateTimeField()
    default = serializers.CharField(allow_null=True)
    aliases = serializers.DictField(child=serializers.CharField())
    data = EventSerializer(many=True)
