"""``/v1/usage``: what was used and spent; ``/v1/routing/teams`` and ``/v1/routing/budgets``: who pays."""

from __future__ import annotations

from typing import Any

from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, viewsets
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from registry.api import RegistryViewSet
from registry.rest import QuerySerializer, StrictSerializer, reason_field
from routing import actions, reports
from routing.core.cost import in_usd
from routing.ledgers import standing
from routing.models import Budget, Team
from routing.models.budgets import check_team_name

MAX_ROWS = 1000


class UsageQuery(QuerySerializer):
    """The query of a usage report."""

    by = serializers.CharField(
        required=False,
        default="model",
        max_length=100,
        help_text=f"what a row stands for: {', '.join(reports.DIMENSIONS)}, several with commas",
    )
    since = serializers.CharField(
        required=False,
        default=None,
        max_length=50,
        help_text="a time (UTC), or 7d, 24h, 30m ago; 30d if left out",
    )
    until = serializers.CharField(required=False, default=None, max_length=50)
    key = serializers.CharField(required=False, max_length=200, help_text="a key's id")
    team = serializers.CharField(required=False, max_length=200)
    route = serializers.CharField(required=False, max_length=200)
    model = serializers.CharField(required=False, max_length=200)
    version = serializers.CharField(required=False, max_length=310, help_text="name@version")
    arm = serializers.CharField(
        required=False,
        max_length=500,
        help_text="experiment/arm, whatever other experiments a request was in",
    )
    limit = serializers.IntegerField(min_value=1, max_value=MAX_ROWS, required=False, default=100)
    cursor = serializers.CharField(required=False, default=None, max_length=4000)


class UsageRow(serializers.Serializer):
    """One group of the report: what it is of, and its sums; money in dollars, exactly."""

    hour = serializers.DateTimeField(required=False)
    day = serializers.DateTimeField(required=False)
    key = serializers.CharField(required=False)
    key_name = serializers.CharField(required=False, allow_null=True)
    team = serializers.CharField(required=False)
    route = serializers.CharField(required=False)
    model = serializers.CharField(required=False)
    version = serializers.CharField(required=False)
    arm = serializers.CharField(required=False)
    requests = serializers.IntegerField(help_text="answered and refused ones")
    errors = serializers.IntegerField()
    cancelled = serializers.IntegerField()
    prompt_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    engine_s = serializers.FloatField(help_text="share of the engines' time")
    cost_usd = serializers.CharField()
    other_cost_usd = serializers.CharField(
        help_text="the part of it for attempts that gave way to others: no key pays for them"
    )


class UsageReport(serializers.Serializer):
    """A page of the report; ``next`` is the cursor of the one after it."""

    object = serializers.ChoiceField(["list"])
    by = serializers.ListField(child=serializers.CharField())
    since = serializers.DateTimeField()
    until = serializers.DateTimeField(allow_null=True)
    data = UsageRow(many=True)
    total = UsageRow()
    next = serializers.CharField(allow_null=True)


class Usage(APIView):
    """What was used and spent."""

    @extend_schema(operation_id="usage", parameters=[UsageQuery], responses=UsageReport)
    def get(self, request: Request) -> Response:
        """Sums of whole hours, grouped; refused requests count as requests and errors that cost nothing."""
        query = UsageQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        given = query.validated_data
        asked = reports.Asked(
            by=reports.dimensions(given["by"]),
            since=reports.moment(given["since"], "since") if given["since"] is not None else None,
            until=reports.moment(given["until"], "until") if given["until"] is not None else None,
            names={name: given[name] for name in reports.NAMES if name in given},
        )
        page, cursor = reports.report(asked, limit=given["limit"], cursor=given["cursor"])
        answer = {
            "object": "list",
            "by": list(asked.by),
            "since": asked.begins_at,
            "until": asked.until,
            "data": page,
            "total": reports.totals(asked),
            "next": cursor,
        }
        return Response(UsageReport(answer).data)


class TeamSerializer(StrictSerializer, serializers.ModelSerializer):
    """A team."""

    # Whether the name is taken is the action's to say (409).
    name = serializers.CharField(max_length=100, validators=[check_team_name])
    reason = reason_field()

    class Meta:
        model = Team
        fields = ("id", "name", "description", "created_at", "reason")
        read_only_fields = ("created_at",)


class TeamFilter(filters.FilterSet):
    """By name."""

    class Meta:
        model = Team
        fields = ("name",)


class TeamViewSet(RegistryViewSet, viewsets.ModelViewSet):
    """Teams: keys that are reported and limited together."""

    queryset = Team.objects.all()
    serializer_class = TeamSerializer
    filterset_class = TeamFilter
    search_fields = ("name", "description")
    ordering_fields = ("id", "name", "created_at")
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    create_row = staticmethod(actions.create_team)
    update_row = staticmethod(actions.update_team)
    delete_row = staticmethod(actions.delete_team)


class BudgetSerializer(StrictSerializer, serializers.ModelSerializer):
    """A budget, and how much of its present period is spent and held."""

    spent_usd = serializers.SerializerMethodField()
    held_usd = serializers.SerializerMethodField()
    reason = reason_field()

    class Meta:
        model = Budget
        fields = ("id", "scope", "subject", "period", "limit_usd", "enabled", "spent_usd", "held_usd",
                  "created_at", "reason")  # fmt: skip
        read_only_fields = ("created_at",)
        # One budget a period is the action's to say (409).
        validators: list[object] = []

    def get_spent_usd(self, row: Budget) -> str:
        """By the ledger; by the stored usage while nobody has opened it."""
        return in_usd(standing(row).spent_nano)

    def get_held_usd(self, row: Budget) -> str:
        """For requests in flight."""
        return in_usd(standing(row).held_nano)


class BudgetFilter(filters.FilterSet):
    """By what it limits."""

    class Meta:
        model = Budget
        fields = ("scope", "subject", "period", "enabled")


class BudgetViewSet(RegistryViewSet, viewsets.ModelViewSet):
    """Budgets: what a key, a team or a route may spend by day, by month, or ever."""

    queryset = Budget.objects.all()
    serializer_class = BudgetSerializer
    filterset_class = BudgetFilter
    search_fields = ("subject",)
    ordering_fields = ("id", "subject", "created_at")
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    update_row = staticmethod(actions.update_budget)
    delete_row = staticmethod(actions.delete_budget)

    @staticmethod
    def create_row(*, scope: str, subject: str, **given: Any) -> Budget:
        """Through the action."""
        return actions.create_budget(scope, subject, **given)
