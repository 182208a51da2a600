"""``/v1/routing/experiments`` and ``/v1/feedback``: experiments and what people say of answers, over REST."""

from __future__ import annotations

import math
from typing import Any

from django.db import models
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from mmserve.errors import NotFound
from registry.api import RegistryViewSet
from registry.models import Event
from registry.rest import ReasonSerializer, StrictSerializer, actor_of, checked, reason_field
from routing.actions import experiments as actions
from routing.actions.feedback import give_feedback
from routing.experiments.plan import plan_of
from routing.experiments.report import as_json, report_of
from routing.models.experiments import ExclusionGroup, Experiment, Exposure, Feedback, check_name

TIMELINE = 200
MAX_SCORES = 16
MAX_SCORE = 1e9
MAX_REQUESTS = 10**9


class NumberField(serializers.FloatField):
    """A finite number; in a body it is no text."""

    def to_internal_value(self, data: Any) -> float:
        """``0.5``; not ``"0.5"``, not NaN."""
        typed = getattr(self.root, "typed", False)
        if isinstance(data, bool) or (typed and isinstance(data, str)):
            self.fail("invalid")
        found = super().to_internal_value(data)
        if not math.isfinite(found):
            self.fail("invalid")
        return found


class ArmSerializer(StrictSerializer):
    """One arm: ``version`` is ``name@version`` (or whatever means one now)."""

    name = serializers.CharField(max_length=60)
    version = serializers.CharField(max_length=320, source="served_id")
    weight = serializers.IntegerField(min_value=1, max_value=1000, default=50)
    is_control = serializers.BooleanField(default=False)


class ExperimentSerializer(StrictSerializer, serializers.ModelSerializer):
    """An experiment. ``arms`` are replaced as a whole, in a draft only."""

    name = serializers.CharField(max_length=60, validators=[check_name])
    arms = ArmSerializer(many=True)
    group = serializers.SlugRelatedField(
        slug_field="name", queryset=ExclusionGroup.objects.all(), required=False, allow_null=True
    )
    winner: serializers.Field = serializers.SlugRelatedField(slug_field="name", read_only=True)
    reason = reason_field()
    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.FloatField: NumberField,
    }

    class Meta:
        model = Experiment
        fields = (
            "id",
            "name",
            *actions.FIELDS,
            "arms",
            "state",
            "state_reason",
            "exposure",
            "ramp_step",
            "phase",
            "winner",
            "revision",
            "created_at",
            "started_at",
            "step_at",
            "ended_at",
            "reason",
        )
        read_only_fields = (
            "state",
            "state_reason",
            "exposure",
            "ramp_step",
            "phase",
            "revision",
            "created_at",
            "started_at",
            "step_at",
            "ended_at",
        )

    def validate_arms(self, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the action takes them."""
        return [{**arm, "version": arm["served_id"]} for arm in value]


class ConcludeSerializer(StrictSerializer):
    """``winner`` is an arm's name; none if there is none."""

    winner = serializers.CharField(max_length=60, required=False, default=None, allow_null=True)
    reason = reason_field()


class ShipSerializer(ConcludeSerializer):
    """``alias`` is what shall mean the winner; the experiment's own target, if left out."""

    alias = serializers.CharField(max_length=320, required=False, default=None, allow_null=True)


class SharesSerializer(StrictSerializer):
    """``weights`` by arm; those that are not named stay."""

    weights = serializers.DictField(
        child=serializers.IntegerField(min_value=1, max_value=1000), allow_empty=False
    )
    reason = reason_field()


class ExperimentReportSerializer(serializers.Serializer):
    """The report: see docs/experiments.md."""

    experiment = serializers.CharField()
    state = serializers.CharField()
    phase = serializers.IntegerField()
    exposure = serializers.FloatField()
    verdict = serializers.CharField()
    words = serializers.CharField()
    leader = serializers.CharField(allow_null=True)
    days_left = serializers.FloatField(allow_null=True)
    units = serializers.IntegerField()
    holdout_requests = serializers.IntegerField()
    arms = serializers.ListField(child=serializers.DictField())
    primary_metric = serializers.CharField()
    smallest_effect = serializers.FloatField()
    alpha = serializers.FloatField()
    comparisons = serializers.DictField(child=serializers.ListField(child=serializers.DictField()))
    guardrails = serializers.ListField(child=serializers.DictField())
    mismatch = serializers.DictField()


class PlanQuery(StrictSerializer):
    """What the calculator may be told; what is left out comes from the traffic so far."""

    typed = False
    requests_per_day = NumberField(min_value=0.001, max_value=MAX_REQUESTS, required=False, default=None)
    baseline = NumberField(min_value=1e-9, max_value=MAX_SCORE, required=False, default=None)
    deviation = NumberField(min_value=1e-9, max_value=MAX_SCORE, required=False, default=None)


class ExperimentPlanSerializer(serializers.Serializer):
    """Days until the smallest effect would be found, with a chance of 80%."""

    metric = serializers.CharField()
    smallest_effect = serializers.FloatField()
    baseline = serializers.FloatField(allow_null=True)
    deviation = serializers.FloatField(allow_null=True)
    requests_per_day = serializers.FloatField(allow_null=True)
    observations = serializers.IntegerField(allow_null=True)
    observations_for_one_look = serializers.IntegerField(allow_null=True)
    days = serializers.FloatField(allow_null=True)
    assumptions = serializers.ListField(child=serializers.CharField())


class TimelineSerializer(serializers.ModelSerializer):
    """One step with its numbers."""

    class Meta:
        model = Event
        fields = ("id", "at", "kind", "actor", "reason", "data", "revision")
        read_only_fields = fields


class ExperimentFilter(filters.FilterSet):
    """By name, state and target."""

    class Meta:
        model = Experiment
        fields = ("name", "state", "target")


class ExperimentViewSet(RegistryViewSet, viewsets.ModelViewSet):
    """Experiments: draft, start, ramp, pause, conclude, roll back, ship."""

    queryset = Experiment.objects.select_related("group", "winner", "alias__model").prefetch_related("arms")
    serializer_class = ExperimentSerializer
    filterset_class = ExperimentFilter
    search_fields = ("name", "target", "hypothesis")
    ordering_fields = ("id", "name", "created_at", "started_at")
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    create_row = staticmethod(actions.create_experiment)
    update_row = staticmethod(actions.update_experiment)
    delete_row = staticmethod(actions.delete_experiment)

    @extend_schema(request=ReasonSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, pk: str) -> Response:
        """Begin, at the first step of the ramp."""
        return self.run(actions.start_experiment)

    @extend_schema(request=ReasonSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def ramp(self, request: Request, pk: str) -> Response:
        """Take the next step now."""
        return self.run(actions.ramp_experiment)

    @extend_schema(request=ReasonSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Give everybody what the id means without it."""
        return self.run(actions.pause_experiment)

    @extend_schema(request=ReasonSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Go on where it was paused."""
        return self.run(actions.resume_experiment)

    @extend_schema(request=ReasonSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def abort(self, request: Request, pk: str) -> Response:
        """End it: everybody gets what the id means without it, for good."""
        return self.run(actions.roll_back_experiment)

    @extend_schema(request=SharesSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def shares(self, request: Request, pk: str) -> Response:
        """Another ratio between the arms; the measuring begins anew."""
        return self._with(SharesSerializer, actions.change_shares, "weights")

    @extend_schema(request=ConcludeSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def conclude(self, request: Request, pk: str) -> Response:
        """End it, naming the winner if there is one; nothing moves until it is shipped."""
        return self._with(ConcludeSerializer, actions.conclude_experiment)

    @extend_schema(request=ShipSerializer, responses=ExperimentSerializer)
    @action(detail=True, methods=["post"])
    def ship(self, request: Request, pk: str) -> Response:
        """Make the winner what the alias means."""
        return self._with(ShipSerializer, actions.ship_experiment)

    @extend_schema(responses=ExperimentReportSerializer)
    @action(detail=True, methods=["get"])
    def report(self, request: Request, pk: str) -> Response:
        """The numbers as they stand, and what to make of them. May be looked at as often as one likes."""
        return Response(as_json(report_of(self.get_object())))

    @extend_schema(parameters=[PlanQuery], responses=ExperimentPlanSerializer)
    @action(detail=True, methods=["get"])
    def plan(self, request: Request, pk: str) -> Response:
        """How many days it takes to find the smallest effect of interest."""
        query = PlanQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        return Response(plan_of(self.get_object(), **query.validated_data))

    @extend_schema(responses=TimelineSerializer(many=True))
    @action(detail=True, methods=["get"], pagination_class=None, filter_backends=[])
    def timeline(self, request: Request, pk: str) -> Response:
        """Every step with its numbers, the newest first."""
        events = Event.objects.filter(subject=self.get_object().subject)[:TIMELINE]
        return Response(TimelineSerializer(events, many=True).data)

    def _with(self, serializer: type[StrictSerializer], verb: Any, *positional: str) -> Response:
        body = checked(serializer, self.request)
        given = [body.pop(name) for name in positional]
        row = verb(self.get_object(), *given, actor=actor_of(self.request), **body)
        row.refresh_from_db()
        return Response(self.get_serializer(row).data)


class GroupSerializer(StrictSerializer, serializers.ModelSerializer):
    """An exclusion group."""

    name = serializers.CharField(max_length=60, validators=[check_name])
    experiments: serializers.Field = serializers.SlugRelatedField(
        slug_field="name", many=True, read_only=True
    )
    reason = reason_field()

    class Meta:
        model = ExclusionGroup
        fields = ("id", "name", "unit", "experiments", "created_at", "reason")
        read_only_fields = ("created_at",)


class GroupFilter(filters.FilterSet):
    """By name."""

    class Meta:
        model = ExclusionGroup
        fields = ("name",)


class GroupViewSet(
    RegistryViewSet, mixins.CreateModelMixin, mixins.DestroyModelMixin, viewsets.ReadOnlyModelViewSet
):
    """Exclusion groups: their experiments never share a unit."""

    queryset = ExclusionGroup.objects.prefetch_related("experiments")
    serializer_class = GroupSerializer
    filterset_class = GroupFilter
    delete_row = staticmethod(actions.delete_group)

    @staticmethod
    def create_row(*, name: str, unit: str = "user", **why: Any) -> ExclusionGroup:
        """Through the action."""
        return actions.create_group(name, unit, **why)


class FeedbackSerializer(StrictSerializer):
    """A rating from 0 (bad) to 1 (good), named scores, or both."""

    request_id = serializers.CharField(
        max_length=60, help_text="the answer's id, or the header x-mmserve-decision"
    )
    rating = NumberField(min_value=0, max_value=1, required=False, default=None, allow_null=True)
    scores = serializers.DictField(
        child=NumberField(min_value=-MAX_SCORE, max_value=MAX_SCORE), required=False, default=dict
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Something is said, under names that can be read."""
        if attrs["rating"] is None and not attrs["scores"]:
            raise serializers.ValidationError({"rating": "a rating or a score is needed"})
        if len(attrs["scores"]) > MAX_SCORES:
            raise serializers.ValidationError({"scores": f"at most {MAX_SCORES} scores"})
        for name in attrs["scores"]:
            if name == "rating" or not name or len(name) > 60 or not name.isprintable():
                raise serializers.ValidationError({"scores": f"{name[:60]!r} cannot be a score's name"})
        return attrs


class FeedbackAnswer(serializers.Serializer):
    """All that is known of one request's feedback."""

    object = serializers.ChoiceField(["feedback"])
    request_id = serializers.CharField()
    values = serializers.DictField(child=serializers.FloatField())
    in_experiment = serializers.BooleanField(
        help_text="Whether the request is known to be of an experiment. If not, it was in none, is not settled yet "
        "(its feedback waits for a day), or is forgotten: then an experiment counts it no more."
    )


class FeedbackView(APIView):
    """What people say of an answer. Any access key may judge its own requests."""

    infer_may = ("POST",)

    @extend_schema(
        operation_id="give_feedback",
        request=FeedbackSerializer,
        responses={200: FeedbackAnswer},
        tags=["inference"],
    )
    def post(self, request: Request) -> Response:
        """Idempotent: the last value of a name counts. It may come before the request is settled, or days later."""
        body = checked(FeedbackSerializer, request)
        kept = give_feedback(
            body["request_id"], key=_judge(request), rating=body["rating"], scores=body["scores"]
        )
        answer = {
            "object": "feedback",
            "request_id": kept[0].request_id,
            "values": dict(
                Feedback.objects.filter(request_id=kept[0].request_id).values_list("name", "value")
            ),
            "in_experiment": Exposure.objects.filter(pk=kept[0].request_id).exists(),
        }
        return Response(answer, status=status.HTTP_200_OK)


def _judge(request: Request) -> str:
    """The access key whose requests may be judged; "" is everybody's, for those who manage."""
    key = request.auth
    if key is None or "manage" in getattr(key, "scopes", ()):
        return ""
    pk = getattr(key, "pk", None)
    if pk is None:
        raise NotFound("There is no such request.", param="request_id")
    return str(pk)
