"""Rows of the registry as JSON."""

from __future__ import annotations

from rest_framework import serializers

from registry.models import Alias, Event, Model, ModelVersion, VersionFile, check_label, check_model_name
from registry.rest import StrictSerializer, reason_field

MAX_REVISION = 2**31 - 1


class ModelSerializer(StrictSerializer, serializers.ModelSerializer):
    """A model."""

    # Whether the name is taken is the action's to say (409).
    name = serializers.CharField(max_length=200, validators=[check_model_name])
    reason = reason_field()

    class Meta:
        model = Model
        fields = ("id", "name", "display_name", "description", "owner", "licence", "created_at", "reason")
        read_only_fields = ("created_at",)


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
            "price_input",
            "price_cached_input",
            "price_output",
            "files",
            "created_at",
            "ready_at",
            "reason",
        )
        read_only_fields = ("state", "state_reason", "progress", "facts", "created_at", "ready_at")
        # One version of a name is the action's to say (409).
        validators: list[object] = []


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
