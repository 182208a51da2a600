"""``/v1/models…`` as OpenAI's clients know it, load and unload, and deployments."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from inference import actions
from inference.capacity.estimate import DTYPE_BYTES, QUANTIZED_BYTES
from inference.deletion import delete
from inference.drafts import MAX_ID_CHARS, named_draft
from inference.listing import listing
from inference.model_objects import version_object, whole_object
from inference.models import MAX_PROMPT_CHARS, MAX_PROMPTS, Deployment, Schedule, with_last_log
from inference.plan import plan_of
from inference.protocol import COMPILED, COMPILING, EAGER
from inference.route_objects import route_object
from inference.rungs import ladders
from inference.status import STATUSES
from registry.lookup import find, find_version
from registry.models import Alias, Model, ModelVersion
from registry.pagination import NewestFirst
from registry.rest import (
    MAX_QUERY_REASON_CHARS,
    QuerySerializer,
    ReasonSerializer,
    StrictSerializer,
    actor_of,
    checked,
    reason_field,
)

MAX_REPLICAS = 64


class VersionStatusSerializer(serializers.Serializer):
    """One version in a model's object."""

    id = serializers.CharField()
    status = serializers.ChoiceField(STATUSES)


class ModelObjectSerializer(serializers.Serializer):
    """OpenAI's model object, and what mmserve adds; only the schema is made from it."""

    id = serializers.CharField()
    object = serializers.ChoiceField(["model"])
    created = serializers.IntegerField()
    owned_by = serializers.CharField()
    display_name = serializers.CharField(required=False)
    description = serializers.CharField(required=False)
    version = serializers.CharField(allow_null=True)
    status = serializers.ChoiceField(STATUSES)
    reason = serializers.CharField(allow_null=True)
    stage = serializers.CharField(allow_null=True)
    eta_s = serializers.FloatField(allow_null=True)
    done_bytes = serializers.IntegerField(allow_null=True)
    total_bytes = serializers.IntegerField(allow_null=True)
    why = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        help_text="why it is not running as wished; of one model only, and only for keys that may manage",
    )
    form = serializers.ChoiceField([EAGER, COMPILING, COMPILED], allow_null=True)
    capabilities = serializers.ListField(child=serializers.CharField())
    context_length = serializers.IntegerField(allow_null=True)
    versions = VersionStatusSerializer(many=True, required=False)
    aliases = serializers.DictField(child=serializers.CharField(), required=False)
    policy = serializers.CharField(required=False)
    candidates = serializers.ListField(child=serializers.CharField(), required=False)


class ModelListSerializer(serializers.Serializer):
    """OpenAI's list of models."""

    object = serializers.ChoiceField(["list"])
    data = ModelObjectSerializer(many=True)


class DeletedSerializer(serializers.Serializer):
    """OpenAI's answer to DELETE."""

    id = serializers.CharField()
    object = serializers.ChoiceField(["model"])
    deleted = serializers.BooleanField()


class DeleteSerializer(QuerySerializer):
    """The query of DELETE."""

    drain = serializers.BooleanField(required=False, default=False)
    reason = reason_field(MAX_QUERY_REASON_CHARS)


class LoadSerializer(StrictSerializer):
    """The body of load."""

    replicas = serializers.IntegerField(min_value=1, max_value=MAX_REPLICAS, required=False, default=1)
    reason = reason_field(MAX_QUERY_REASON_CHARS)


def manages(request: Request) -> bool:
    """Whether it may see nodes and their memory: an operator's session, or a key with the scope ``manage``."""
    return request.auth is None or "manage" in request.auth.scopes


def object_of(model_id: str, *, why: bool) -> dict[str, Any]:
    """The object of what an id names: a model, one of its versions or aliases, a route, or ``auto``."""
    route = route_object(model_id)
    if route is not None:
        return route
    found = find(model_id)
    if isinstance(found, Model):
        return whole_object(found, why=why)
    return version_object(found.version if isinstance(found, Alias) else found, model_id, why=why)


class Models(APIView):
    """The models that clients may name."""

    infer_may_read = True

    @extend_schema(operation_id="list_models", responses=ModelListSerializer)
    def get(self, request: Request) -> HttpResponse:
        """All models, by name."""
        return HttpResponse(listing(), content_type="application/json")


class OneModel(APIView):
    """One model, version, alias or route; the id may hold ``/``."""

    infer_may_read = True

    @extend_schema(operation_id="retrieve_model", responses=ModelObjectSerializer)
    def get(self, request: Request, model_id: str) -> Response:
        """Its object, with its status."""
        return Response(object_of(model_id, why=manages(request)))

    @extend_schema(
        operation_id="delete_model",
        parameters=[DeleteSerializer],
        responses={200: DeletedSerializer, 202: DeletedSerializer},
    )
    def delete(self, request: Request, model_id: str) -> Response:
        """Delete a model with its versions and files, a version, or an alias; refused while it is served.

        With ``drain`` it is unloaded first: 202 and ``"deleted": false`` until its engines have finished.
        """
        found = find(model_id)
        deleted = delete(found, actor=actor_of(request), **checked(DeleteSerializer, request))
        answer = {"id": model_id, "object": "model", "deleted": deleted}
        return Response(answer, status=status.HTTP_200_OK if deleted else status.HTTP_202_ACCEPTED)


class PlanQuery(QuerySerializer):
    """The query of a plan."""

    context_length = serializers.IntegerField(min_value=1, max_value=2**31, required=False)
    streams = serializers.IntegerField(min_value=1, max_value=100_000, required=False)
    kv_cache_bytes = serializers.IntegerField(min_value=1, max_value=2**50, required=False)
    dtype = serializers.ChoiceField(["auto", *DTYPE_BYTES], required=False)
    quantization = serializers.ChoiceField(list(QUANTIZED_BYTES), required=False)
    tensor_parallel = serializers.IntegerField(min_value=1, max_value=64, required=False)
    draft = serializers.CharField(
        max_length=MAX_ID_CHARS,
        required=False,
        help_text="name@version of a draft model (speculative decoding)",
    )


class PlanOnDeviceSerializer(serializers.Serializer):
    """What it would be on one device; ``streams``: with all its free memory as cache."""

    device = serializers.CharField()
    kind = serializers.CharField()
    needed_bytes = serializers.IntegerField()
    free_bytes = serializers.IntegerField()
    fits = serializers.BooleanField()
    streams = serializers.IntegerField(allow_null=True)
    reason = serializers.CharField(allow_null=True)


class PlanSerializer(serializers.Serializer):
    """What a version would take, and where it would fit."""

    id = serializers.CharField()
    draft = serializers.CharField(allow_null=True)
    total_bytes = serializers.IntegerField()
    parts = serializers.DictField(child=serializers.IntegerField())
    calibrated = serializers.BooleanField(help_text="by what an earlier load of the same thing took")
    kv_bytes_a_token = serializers.IntegerField(allow_null=True)
    kv_bytes_a_stream = serializers.IntegerField(allow_null=True)
    streams = serializers.IntegerField(allow_null=True)
    fits = serializers.BooleanField()
    device = serializers.CharField(allow_null=True)
    devices = PlanOnDeviceSerializer(many=True)
    fits_when_empty = serializers.BooleanField()
    reasons = serializers.ListField(child=serializers.CharField())


class Plan(APIView):
    """What if."""

    @extend_schema(operation_id="plan_model", parameters=[PlanQuery], responses=PlanSerializer)
    def get(self, request: Request, model_id: str) -> Response:
        """What a version would take of memory, by part, and where it would fit; nothing is loaded."""
        query = PlanQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        return Response(plan_of(find_version(model_id), **query.validated_data))


class Load(APIView):
    """Have a model served."""

    @extend_schema(operation_id="load_model", request=LoadSerializer, responses={202: ModelObjectSerializer})
    def post(self, request: Request, model_id: str) -> Response:
        """Wish for replicas; refused, with figures, if they could not fit."""
        body = checked(LoadSerializer, request)
        actions.load(find_version(model_id), actor=actor_of(request), **body)
        return Response(object_of(model_id, why=True), status=status.HTTP_202_ACCEPTED)


class Unload(APIView):
    """Have a model served no longer."""

    @extend_schema(
        operation_id="unload_model", request=ReasonSerializer, responses={202: ModelObjectSerializer}
    )
    def post(self, request: Request, model_id: str) -> Response:
        """Requests that run finish first."""
        body = checked(ReasonSerializer, request)
        actions.unload(find_version(model_id), actor=actor_of(request), **body)
        return Response(object_of(model_id, why=True), status=status.HTTP_202_ACCEPTED)


class TextField(serializers.CharField):
    """A text, and no number in its place."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class VersionField(serializers.CharField):
    """A version by its id: shown as ``name@version``; an alias stands for what it means now."""

    def to_internal_value(self, data: Any) -> ModelVersion:
        return named_draft(data)

    def to_representation(self, value: ModelVersion) -> str:
        return value.served_id


class ScheduleSerializer(StrictSerializer, serializers.ModelSerializer):
    """When a deployment is kept hot."""

    class Meta:
        model = Schedule
        fields = ("days", "start", "end", "timezone")


class DeploymentSerializer(StrictSerializer, serializers.ModelSerializer):
    """How a version is served; ``load`` and ``unload`` set the replicas."""

    served_id = serializers.CharField(source="version.served_id", read_only=True)
    rung = serializers.SerializerMethodField()
    ladder = serializers.SerializerMethodField()
    warmup_prompts = serializers.ListField(
        child=TextField(max_length=MAX_PROMPT_CHARS), max_length=MAX_PROMPTS, required=False
    )
    draft = VersionField(
        required=False, allow_null=True, help_text="name@version of the model that guesses (draft_model)"
    )
    schedules = ScheduleSerializer(many=True, required=False, max_length=actions.MAX_SCHEDULES)  # type: ignore[call-arg]
    log_tail = serializers.CharField(source="last_log", read_only=True, allow_null=True)
    reason = reason_field()

    class Meta:
        model = Deployment
        fields = (
            "id",
            "name",
            "version",
            "served_id",
            "replicas",
            "failure",
            "log_tail",
            "rung",
            "ladder",
            "schedules",
            "hot_since",
            *sorted(actions.EDITABLE),
            "created_at",
            "reason",
        )
        read_only_fields = ("name", "version", "replicas", "failure", "hot_since", "created_at")

    def get_rung(self, row: Deployment) -> str:
        """Where on its ladder it is: ``serving`` to ``remote``."""
        return self._ladder_of(row)["rung"]

    def get_ladder(self, row: Deployment) -> list[str]:
        """The rungs that it has, on the devices and the store that are here."""
        return self._ladder_of(row)["ladder"]

    def _ladder_of(self, row: Deployment) -> dict[str, Any]:
        known = self.context.setdefault("ladders", {})
        if row.pk not in known:
            page = getattr(self.root, "instance", None)
            known.update(ladders(page if isinstance(page, list) else [row]))
        return known[row.pk]


@extend_schema_view(partial_update=extend_schema(description="Change options; running replicas keep theirs."))
class DeploymentViewSet(mixins.UpdateModelMixin, viewsets.ReadOnlyModelViewSet):
    """Deployments: engine options and bounds."""

    queryset = with_last_log(
        Deployment.objects.select_related("version__model", "draft__model").prefetch_related("schedules")
    )
    serializer_class = DeploymentSerializer
    pagination_class = NewestFirst
    lookup_value_regex = "[0-9]{1,18}"
    filterset_fields = ("name", "version", "version__model__name")
    http_method_names = ["get", "patch", "head", "options"]

    def perform_update(self, serializer: Any) -> None:
        """Change through the action."""
        changes = dict(serializer.validated_data)
        reason = changes.pop("reason", "")
        why = {"actor": actor_of(self.request), "reason": reason}
        schedules = changes.pop("schedules", None)
        row = serializer.instance
        if changes:
            actions.configure(row, changes, **why)
        if schedules is not None:
            actions.set_schedules(row, schedules, **why)
        serializer.instance = self.get_queryset().get(pk=row.pk)
