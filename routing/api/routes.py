"""``/v1/routing/routes``: routes over REST. Every write is one of routing.actions.routes."""

from __future__ import annotations

from typing import Any

from django_filters import rest_framework as filters
from rest_framework import serializers, viewsets

from registry.api import RegistryViewSet
from registry.models import MAX_TARGET_CHARS, check_model_name, check_target
from registry.rest import StrictSerializer, reason_field
from registry.serializers import MAX_REVISION
from routing.actions import routes as actions
from routing.core.route import Cause
from routing.models.routes import MAX_HEDGE_PERCENT, MAX_WEIGHT, Route, check_finite


class Share(serializers.FloatField):
    """A number from JSON: no text, no truth value."""

    def __init__(self, max_value: float = MAX_WEIGHT, **kwargs: Any) -> None:
        super().__init__(min_value=0.0, max_value=max_value, validators=[check_finite], **kwargs)

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, (str, bool)):
            self.fail("invalid")
        return super().to_internal_value(data)


class RouteLineSerializer(StrictSerializer):
    """One line: a model's name, name@version or name@alias, with its share."""

    target = serializers.CharField(max_length=MAX_TARGET_CHARS, validators=[check_target])
    weight = Share(required=False, default=1.0)
    note = serializers.CharField(max_length=300, required=False, default="", allow_blank=True)


class RouteSerializer(StrictSerializer, serializers.ModelSerializer):
    """A route; ``candidates`` stand in the order of priority, and are replaced as a whole."""

    # Whether the name is taken is the action's to say (409).
    name = serializers.CharField(max_length=200, validators=[check_model_name])
    candidates = RouteLineSerializer(many=True, required=False)
    weight_quality = Share(required=False)
    weight_cost = Share(required=False)
    weight_latency = Share(required=False)
    weight_load = Share(required=False)
    hedge_percent = Share(max_value=MAX_HEDGE_PERCENT, required=False)
    require = serializers.ListField(
        child=serializers.CharField(max_length=100), max_length=50, required=False
    )
    no_fallback_on = serializers.ListField(
        child=serializers.ChoiceField([cause.value for cause in Cause]), max_length=len(Cause), required=False
    )
    expected_revision = serializers.IntegerField(
        min_value=1, max_value=MAX_REVISION, required=False, write_only=True
    )
    reason = reason_field()

    class Meta:
        model = Route
        fields = (
            "id",
            "name",
            *actions.FIELDS,
            "candidates",
            "revision",
            "created_at",
            "updated_at",
            "expected_revision",
            "reason",
        )
        read_only_fields = ("revision", "created_at", "updated_at")


class RouteFilter(filters.FilterSet):
    """By name, policy, and whether it is switched on."""

    class Meta:
        model = Route
        fields = ("name", "policy", "enabled")


class RouteViewSet(RegistryViewSet, viewsets.ModelViewSet):
    """Routes: create, look at, change, delete."""

    queryset = Route.objects.prefetch_related("candidates")
    serializer_class = RouteSerializer
    filterset_class = RouteFilter
    search_fields = ("name", "description")
    ordering_fields = ("id", "name", "updated_at")
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    update_row = staticmethod(actions.update_route)
    delete_row = staticmethod(actions.delete_route)

    @staticmethod
    def create_row(*, expected_revision: int | None = None, **fields: Any) -> Route:
        """A new one has no revision to expect."""
        return actions.create_route(**fields)
