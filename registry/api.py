"""``/v1/registry/…``: the registry's rows over REST. Every write is one of registry.actions."""

from __future__ import annotations

import datetime
from typing import Any

from django.db.models import DateTimeField, Value
from django.db.models.functions import Coalesce
from django.utils import timezone
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.filters import SearchFilter
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from mmserve.errors import InvalidRequest
from registry import actions, filters, history, serializers
from registry.conditional import ConditionalWrites
from registry.lookup import find_label, find_model
from registry.models import Alias, Event, Model, ModelVersion
from registry.pagination import NewestFirst
from registry.rest import ReasonSerializer, actor_of, checked

ID = "[0-9]{1,18}"
NEVER = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class RegistryViewSet(ConditionalWrites):
    """What the registry's views share."""

    pagination_class = NewestFirst
    lookup_value_regex = ID
    filter_backends = (DjangoFilterBackend, SearchFilter, filters.StrictOrdering)
    search_fields: tuple[str, ...] = ()
    ordering_fields: tuple[str, ...] = ("id",)

    def filter_queryset(self, queryset: Any) -> Any:
        """As asked; a parameter that this list does not have is refused."""
        if not self.detail:
            known = {"cursor", "limit", "ordering", *self.filterset_class.get_filters()}
            known |= {"search"} if self.search_fields else set()
            unknown = sorted(set(self.request.query_params) - known)
            if unknown:
                raise InvalidRequest(
                    f"{unknown[0][:50]}: no such parameter; known are {', '.join(sorted(known))}",
                    param=unknown[0][:50],
                )
        return super().filter_queryset(queryset)

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
    filterset_class = filters.ModelFilter
    search_fields = ("name", "display_name", "description", "owner", "team")
    ordering_fields = ("id", "name", "created_at")
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

    queryset = (
        ModelVersion.objects.select_related("model")
        .prefetch_related("files")
        .annotate(was_ready_at=Coalesce("ready_at", Value(NEVER), output_field=DateTimeField()))
    )
    serializer_class = serializers.VersionSerializer
    filterset_class = filters.VersionFilter
    search_fields = ("model__name", "version", "description", "source_uri")
    ordering_fields = ("id", "version", "created_at", "ready_at")
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

    @extend_schema(request=serializers.VerifySerializer, responses={202: serializers.VersionSerializer})
    @action(detail=True, methods=["post"])
    def verify(self, request: Request, pk: str) -> Response:
        """Have an ops job hash its files; an event says what it found."""
        body = checked(serializers.VerifySerializer, request)
        row = actions.verify_version(self.get_object(), actor=actor_of(request), **body)
        return Response(self.get_serializer(row).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=ReasonSerializer, responses=serializers.VersionSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop bringing the files."""
        return self.run(actions.cancel_import)

    @extend_schema(request=serializers.DuplicateSerializer, responses={201: serializers.VersionSerializer})
    @action(detail=True, methods=["post"])
    def duplicate(self, request: Request, pk: str) -> Response:
        """A new version of the same files, with other options or prices."""
        body = checked(serializers.DuplicateSerializer, request)
        row = actions.duplicate_version(
            self.get_object(), body.pop("version"), actor=actor_of(request), **body
        )
        return Response(self.get_serializer(row).data, status=status.HTTP_201_CREATED)

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
    filterset_class = filters.AliasFilter
    search_fields = ("model__name", "name")
    ordering_fields = ("id", "name", "updated_at")
    delete_row = staticmethod(actions.delete_alias)

    @extend_schema(request=ReasonSerializer, responses=serializers.AliasSerializer)
    @action(detail=True, methods=["post"])
    def default(self, request: Request, pk: str) -> Response:
        """Make it what the model's bare name means."""
        return self.run(actions.set_default_alias)


class EventViewSet(RegistryViewSet, viewsets.ReadOnlyModelViewSet):
    """Events, read-only."""

    queryset = Event.objects.all()
    serializer_class = serializers.EventSerializer
    filterset_class = filters.EventFilter
    search_fields = ("subject", "actor", "reason")
    ordering_fields = ("id", "at")


class History(APIView):
    """What a model's aliases meant at a time, and what happened to it until then."""

    @extend_schema(
        operation_id="model_history",
        parameters=[serializers.HistoryQuery],
        responses=serializers.HistorySerializer,
    )
    def get(self, request: Request, model_id: str) -> Response:
        """Events are the newest first; ``before`` takes the last one's id for the next page."""
        query = serializers.HistoryQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        asked = query.validated_data
        at = asked["at"] or timezone.now()
        happened = history.events_of(model_id)
        if not happened.exists():
            find_model(model_id)
        events = happened.filter(at__lte=at)
        if asked["before"] is not None:
            events = events.filter(id__lt=asked["before"])
        meaning = history.meaning_at(model_id, at)
        answer = {
            "object": "list",
            "model": model_id,
            "at": at,
            "default": meaning.default,
            "aliases": meaning.aliases,
            "data": events[: asked["limit"]],
        }
        return Response(serializers.HistorySerializer(answer).data)


def _alias(row: Alias) -> Response:
    return Response(serializers.AliasSerializer(row).data)
