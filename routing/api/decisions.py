"""``/v1/routing/decisions`` and ``/v1/routing/stats``: why requests went where they went, and how that turned out."""

from __future__ import annotations

import re
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from mmserve.errors import InvalidRequest
from registry.rest import QuerySerializer
from routing.breakers import Breakers, DeploymentBreakers, breakers
from routing.core.breaker import State
from routing.core.histogram import RELATIVE_ERROR
from routing.decisions import as_json, find_decision, latest_decisions
from routing.stats import GROUP, MOST_WINDOW_S, stats, window_begin

WINDOW = re.compile(r"([1-9][0-9]{0,8})([smhd]?)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class CandidateSerializer(serializers.Serializer):
    """One deployment that was looked at."""

    id = serializers.CharField()
    model = serializers.CharField(help_text="name@version")
    eligible = serializers.BooleanField()
    reasons = serializers.ListField(child=serializers.CharField())
    scores = serializers.DictField(child=serializers.FloatField())


class LinkSerializer(serializers.Serializer):
    """One place in the chain, and what was expected of it."""

    id = serializers.CharField()
    served_id = serializers.CharField()
    cold = serializers.BooleanField(help_text="it had to be loaded first")
    ttft_s = serializers.FloatField()
    tpot_s = serializers.FloatField()
    cost_usd = serializers.FloatField()


class PredictedSerializer(serializers.Serializer):
    """What was expected when it was decided; null where nothing was."""

    ttft_s = serializers.FloatField(allow_null=True)
    tpot_s = serializers.FloatField(allow_null=True)
    most_cost_usd = serializers.CharField(allow_null=True)


class OutcomeSerializer(serializers.Serializer):
    """What came of it."""

    outcome = serializers.CharField(help_text="completed, cancelled or an error's code")
    status = serializers.IntegerField()
    served = serializers.CharField(help_text="name@version")
    deployment = serializers.CharField(allow_null=True)
    replica = serializers.CharField(allow_null=True)
    preferred_replica = serializers.CharField(
        allow_null=True, help_text="the one that was to get it for its cache; null: anybody"
    )
    preferred_why = serializers.CharField(allow_null=True, help_text="null where there was no choice")
    ttft_s = serializers.FloatField()
    tpot_s = serializers.FloatField()
    e2e_s = serializers.FloatField()
    prompt_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField(help_text="of the prompt, found in the replica's cache")
    completion_tokens = serializers.IntegerField()
    cost_usd = serializers.CharField()


class DecisionSerializer(serializers.Serializer):
    """One decision; never the prompt."""

    id = serializers.CharField()
    at = serializers.FloatField(help_text="unix time")
    key = serializers.CharField()
    team = serializers.CharField(allow_null=True)
    endpoint = serializers.CharField()
    model = serializers.CharField()
    route = serializers.CharField(allow_null=True)
    policy = serializers.CharField()
    revision = serializers.IntegerField(help_text="of the configuration that it was decided by")
    chosen = serializers.CharField(allow_null=True)
    chain = LinkSerializer(many=True)
    candidates = CandidateSerializer(many=True)
    candidates_left_out = serializers.IntegerField()
    assignments = serializers.DictField(child=serializers.CharField(), help_text="experiment to arm")
    attempts = serializers.ListField(child=serializers.DictField())
    request = serializers.DictField(help_text="what the decision knew of the request")
    predicted = PredictedSerializer()
    outcome = OutcomeSerializer()


class DecisionList(serializers.Serializer):
    """The last ones, the newest first."""

    object = serializers.ChoiceField(["list"])
    data = DecisionSerializer(many=True)


class DecisionsQuery(QuerySerializer):
    """The query of the list."""

    limit = serializers.IntegerField(min_value=1, max_value=200, required=False, default=20)


class Decision(APIView):
    """One decision."""

    @extend_schema(operation_id="routing_decision", responses=DecisionSerializer)
    def get(self, request: Request, decision_id: str) -> Response:
        """Why a request went where it went: the id is in its answer's ``x-mmserve-decision``."""
        return Response(as_json(find_decision(decision_id)))


class Decisions(APIView):
    """The last decisions."""

    @extend_schema(operation_id="routing_decisions", parameters=[DecisionsQuery], responses=DecisionList)
    def get(self, request: Request) -> Response:
        """The last ones that were kept."""
        query = DecisionsQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        found = latest_decisions(query.validated_data["limit"])
        return Response({"object": "list", "data": [as_json(one) for one in found]})


class StatsQuery(QuerySerializer):
    """The query of the statistics."""

    window = serializers.CharField(
        required=False, default="1h", max_length=20, help_text="seconds, or 15m, 2h, 1d; two days at most"
    )
    route = serializers.CharField(required=False, max_length=200)
    model = serializers.CharField(required=False, max_length=200)
    version = serializers.CharField(required=False, max_length=310)
    arm = serializers.CharField(
        required=False,
        max_length=500,
        help_text="experiment/arm, whatever other experiments a request was in",
    )
    limit = serializers.IntegerField(min_value=1, max_value=1000, required=False, default=200)


class QuantilesSerializer(serializers.Serializer):
    """Seconds; null of nothing."""

    p50 = serializers.FloatField(allow_null=True)
    p95 = serializers.FloatField(allow_null=True)
    p99 = serializers.FloatField(allow_null=True)


class StatsRow(serializers.Serializer):
    """One route, version and arm."""

    route = serializers.CharField(allow_blank=True)
    model = serializers.CharField()
    version = serializers.CharField()
    arm = serializers.CharField(allow_blank=True)
    requests = serializers.IntegerField()
    cancelled = serializers.IntegerField()
    fallbacks = serializers.IntegerField(
        help_text="changes from one choice to the next; who was only passed over does not count"
    )
    cache_hits = serializers.IntegerField(help_text="answers with a prompt that was in part in the KV cache")
    prompt_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    errors = serializers.DictField(child=serializers.IntegerField(), help_text="by code")
    cost_usd = serializers.CharField()
    ttft_s = QuantilesSerializer()
    tpot_s = QuantilesSerializer()
    e2e_s = QuantilesSerializer()
    breaker = serializers.ChoiceField(
        list(State),
        allow_null=True,
        help_text="the worst of the version's deployments; null: nobody knows, or nobody served",
    )


class BreakerSerializer(serializers.Serializer):
    """The circuit breakers of one deployment."""

    deployment = serializers.CharField()
    version = serializers.CharField()
    worst = serializers.ChoiceField(list(State))
    processes = serializers.DictField(
        child=serializers.ChoiceField(list(State)),
        help_text="gateway process to what its breaker lets through",
    )


class StatsSerializer(serializers.Serializer):
    """``relative_error``: how far a quantile may be from the true one.

    ``breakers`` are as they are now, the worst first, of deployments that a gateway process in ``processes`` has
    sent a request to.
    """

    object = serializers.ChoiceField(["list"])
    window_s = serializers.IntegerField()
    since = serializers.DateTimeField()
    until = serializers.DateTimeField()
    relative_error = serializers.FloatField()
    data = StatsRow(many=True)
    left_out = serializers.IntegerField()
    processes = serializers.ListField(child=serializers.CharField())
    breakers = BreakerSerializer(many=True)


class Stats(APIView):
    """How routing did."""

    @extend_schema(operation_id="routing_stats", parameters=[StatsQuery], responses=StatsSerializer)
    def get(self, request: Request) -> Response:
        """By route, version and arm over a window of whole minutes, some seconds behind."""
        query = StatsQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        given: dict[str, Any] = query.validated_data
        window_s = seconds(given["window"])
        names = {name: given[name] for name in GROUP if name in given}
        data, left_out = stats(window_s, names, given["limit"])
        known = breakers()
        worst = known.by_version()
        for row in data:
            nobody = not row["version"] or not known.processes
            row["breaker"] = None if nobody else worst.get(row["version"], State.CLOSED)
        answer = {
            "object": "list",
            "window_s": window_s,
            "since": window_begin(window_s),
            "until": timezone.now(),
            "relative_error": RELATIVE_ERROR,
            "data": data,
            "left_out": left_out,
            "processes": known.processes,
            "breakers": _asked_for(known, given.get("version"), given.get("model"))[: given["limit"]],
        }
        return Response(StatsSerializer(answer).data)


def _asked_for(known: Breakers, version: str | None, model: str | None) -> list[DeploymentBreakers]:
    """Of the version or model asked for; of a route all, as what it has left alone is in no row of it."""
    return [
        one
        for one in known.deployments
        if version in (None, one.version) and model in (None, one.version.rpartition("@")[0])
    ]


def seconds(window: str) -> int:
    """``900``, ``15m`` or ``2h`` in seconds."""
    found = WINDOW.fullmatch(window)
    length = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 0 < length <= MOST_WINDOW_S:
        raise InvalidRequest(
            f"window: {window!r} is no time like 900, 15m or 2h of at most {MOST_WINDOW_S} s", param="window"
        )
    return length
