"""``/v1/registry/…``: the registry's rows over REST. Every write is one of registry.actions."""

from __future__ import annotations

from typing import Any

from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from registry import actions, serializers
from registry.lookup import find_label
from registry.models import Alias, Event, Model, ModelVersion
from registry.pagination import NewestFirst
from registry.rest import ReasonSerializer, actor_of, checked

ID = "[0-9]{1,18}"


class RegistryViewSet(viewsets.GenericViewSet):
    """What the registry's views share."""

    pagination_class = NewestFirst
    lookup_value_regex = ID

    def perform_create(self, serializer: Any) -> None:
        """Create through the action."""
        serializer.instance = self.create_row(actor=actor_of(self.request), **serializer.validated_data)

    def perform_update(self, serializer: Any) -> None:
        """Change through the action; PUT and PATCH alike change what they name."""
        serializer.instance = self.update_row(
            serializer.instance, actor=actor_of(self.request), **serializer.validated_data
        )

    def perform_destroy(self, instance: Any) -> None:
        """Delete through the action."""
        reason = checked(ReasonSerializer, self.request)["reason"]
        self.delete_row(instance, actor=actor_of(self.request), reason=reason)

    def run(self, verb: Any) -> Response:
        """An action on one row that needs nothing but a reason; answers with the row."""
        body = checked(ReasonSerializer, self.request)
        row = verb(self.get_object(), actor=actor_of(self.request), **body)
        return Response(self.get_serializer(row).data)


class ModelViewSet(RegistryViewSet, viewsets.ModelViewSet):
    """Models: register, describe, promote, roll back, delete."""

    queryset = Model.objects.all()
    serializer_class = serializers.ModelSerializer
    filterset_fields = ("name", "owner")
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    create_row = staticmethod(actions.register_model)
    update_row = staticmethod(actions.update_model)
    delete_row = staticmethod(actions.delete_model)

    @extend_schema(request=serializers.PromoteSerializer, responses=serializers.AliasSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """Move an alias to a version, by compare-and-set on its revision."""
        body = checked(serializers.PromoteSerializer, request)
        version = find_label(self.get_object(), body.pop("version"))
        if isinstance(version, Alias):
            version = version.version
        return _alias(actions.promote(version, actor=actor_of(request), **body))

    @extend_schema(request=serializers.RollbackSerializer, responses=serializers.AliasSerializer)
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, pk: str) -> Response:
        """Move an alias back to the version that it meant before."""
        body = checked(serializers.RollbackSerializer, request)
        return _alias(actions.rollback(self.get_object(), actor=actor_of(request), **body))


class VersionViewSet(RegistryViewSet, viewsets.ModelViewSet):
    """Versions: register, price, import, archive, restore, delete."""

    queryset = ModelVersion.objects.select_related("model").prefetch_related("files")
    serializer_class = serializers.VersionSerializer
    filterset_fields = ("model", "model__name", "version", "state")
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    create_row = staticmethod(actions.register_version)
    update_row = staticmethod(actions.update_version)
    delete_row = staticmethod(actions.delete_version)

    @extend_schema(request=ReasonSerializer, responses={202: serializers.VersionSerializer})
    @action(detail=True, methods=["post"], url_path="import", url_name="import")
    def import_files(self, request: Request, pk: str) -> Response:
        """Have an ops job bring the files; also retries after a failure."""
        response = self.run(actions.import_version)
        response.status_code = status.HTTP_202_ACCEPTED
        return response

    @extend_schema(request=ReasonSerializer, responses=serializers.VersionSerializer)
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, pk: str) -> Response:
        """Keep it for history, refuse to serve it."""
        return self.run(actions.archive_version)

    @extend_schema(request=ReasonSerializer, responses=serializers.VersionSerializer)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, pk: str) -> Response:
        """Bring an archived version back."""
        return self.run(actions.restore_version)


class AliasViewSet(RegistryViewSet, mixins.DestroyModelMixin, viewsets.ReadOnlyModelViewSet):
    """Aliases; a model's ``promote`` makes and moves them."""

    queryset = Alias.objects.select_related("model", "version")
    serializer_class = serializers.AliasSerializer
    filterset_fields = ("model", "model__name", "name", "is_default")
    delete_row = staticmethod(actions.delete_alias)

    @extend_schema(request=ReasonSerializer, responses=serializers.AliasSerializer)
    @action(detail=True, methods=["post"])
    def default(self, request: Request, pk: str) -> Response:
        """Make it what the model's bare name means."""
        return self.run(actions.set_default_alias)


class EventFilter(filters.FilterSet):
    """By kind, subject, actor and time."""

    since = filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    until = filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")

    class Meta:
        model = Event
        fields = ("kind", "subject", "actor")


class EventViewSet(RegistryViewSet, viewsets.ReadOnlyModelViewSet):
    """Events, read-only."""

    queryset = Event.objects.all()
    serializer_class = serializers.EventSerializer
    filterset_class = EventFilter


def _alias(row: Alias) -> Response:
    return Response(serializers.AliasSerializer(row).data)
