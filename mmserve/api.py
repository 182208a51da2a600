"""``/v1/registry/keys``: access keys over REST."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from mmserve.key_actions import EDITABLE, change_key, create_key, revoke_key
from mmserve.models import MAX_PATTERNS, SCOPES, AccessKey
from registry.conditional import ConditionalWrites
from registry.pagination import NewestFirst
from registry.rest import ReasonSerializer, StrictSerializer, actor_of, checked, reason_field
from routing.models import Team


class KeyOrder(NewestFirst):
    """Keys have random ids: the newest by its time."""

    ordering = "-created"


class TeamField(serializers.SlugRelatedField):
    """A team by its name; null: none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            slug_field="name", queryset=Team.objects.all(), required=False, allow_null=True, **options
        )


class KeySerializer(StrictSerializer, serializers.ModelSerializer):
    """An access key, without the key."""

    scopes = serializers.ListField(child=serializers.ChoiceField(SCOPES), min_length=1, required=False)
    team = TeamField()
    allowed_models = serializers.ListField(
        child=serializers.CharField(max_length=300), max_length=MAX_PATTERNS, required=False
    )
    reason = reason_field()

    class Meta:
        model = AccessKey
        fields = (
            "id",
            "name",
            "token_key",
            "team",
            "scopes",
            "requests_per_minute",
            "tokens_per_minute",
            "max_concurrency",
            "priority",
            "allowed_models",
            "created",
            "expiry",
            "revoked_at",
            "reason",
        )
        read_only_fields = ("token_key", "created", "revoked_at")


class KeyChangeSerializer(StrictSerializer, serializers.ModelSerializer):
    """What can be changed of a key."""

    team = TeamField()
    reason = reason_field()

    class Meta:
        model = AccessKey
        fields = (*EDITABLE, "reason")


class CreatedKeySerializer(KeySerializer):
    """The only answer that ever holds the key."""

    key = serializers.CharField(
        required=False,
        help_text="in the first answer only: a repeated Idempotency-Key is answered without it",
    )

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")


class KeyViewSet(ConditionalWrites, mixins.DestroyModelMixin, viewsets.ReadOnlyModelViewSet):
    """Access keys: create, look at, change their limits, revoke."""

    queryset = AccessKey.objects.select_related("team")
    serializer_class = KeySerializer
    pagination_class = KeyOrder
    filterset_fields = ("name",)
    lookup_value_regex = "[0-9a-f-]{36}"

    @extend_schema(request=KeySerializer, responses={201: CreatedKeySerializer})
    def create(self, request: Request) -> Response:
        """A new key; its text is in this answer and nowhere else."""
        body: dict[str, Any] = checked(KeySerializer, request)
        key, raw = create_key(user=request.user, actor=actor_of(request), **body)
        return Response({**KeySerializer(key).data, "key": raw}, status=status.HTTP_201_CREATED)

    def kept(self, data: Any) -> Any:
        """Without the key, which is stored nowhere."""
        return {name: value for name, value in data.items() if name != "key"} if data else data

    @extend_schema(request=KeyChangeSerializer, responses=KeySerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Other limits, another class or team, from now on."""
        body: dict[str, Any] = checked(KeyChangeSerializer, request)
        reason = body.pop("reason", "")
        row = change_key(self.get_object(), body, actor=actor_of(request), reason=reason)
        return Response(KeySerializer(row).data)

    def perform_destroy(self, instance: AccessKey) -> None:
        """Revoke: the row stays for the record."""
        revoke_key(instance, actor=actor_of(self.request), **checked(ReasonSerializer, self.request))
