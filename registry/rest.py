"""What the REST views of every app share: who asks, strict bodies, and writing through actions."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request

MAX_REASON_CHARS = 2000
# Escaped, a character of a query is up to 12 bytes, and a URL has 16 KiB.
MAX_QUERY_REASON_CHARS = 500


def actor_of(request: Request) -> str:
    """Who asks, for the event: the key by its name, else the user."""
    name = getattr(request.auth, "name", None)
    return f"key:{name}" if name else f"user:{request.user}"


def reason_field(most: int = MAX_REASON_CHARS) -> serializers.CharField:
    """``reason`` in a body (or, shorter, in a query): why, for the event."""
    return serializers.CharField(
        write_only=True, required=False, default="", allow_blank=True, max_length=most
    )


# DRF would turn 7 into "7" and "7" into 7; a client that sends the wrong type has a mistake to find.
JSON_TYPES: tuple[tuple[type[serializers.Field], type, str], ...] = (
    (serializers.BooleanField, bool, "true or false"),
    (serializers.IntegerField, int, "a whole number"),
    (serializers.CharField, str, "a string"),
)


def check_type(field: serializers.Field, value: Any) -> None:
    """Refuse a JSON value that is not of the field's type; null is the field's own to judge."""
    for kind, wanted, words in JSON_TYPES:
        if isinstance(field, kind) and value is not None:
            # In JSON 1.0 is a whole number.
            whole = wanted is int and isinstance(value, float) and value.is_integer()
            if type(value) is not wanted and not whole:
                raise serializers.ValidationError({str(field.field_name): f"not {words}"})
            return


class StrictSerializer(serializers.Serializer):
    """Refuses fields that it does not know and values of another type, as OpenAI does."""

    typed = True

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            writable = {name for name, field in self.fields.items() if not field.read_only}
            unknown = [str(name) for name in data if name not in writable]
            if unknown:
                known = ", ".join(sorted(writable))
                raise serializers.ValidationError({unknown[0]: f"unknown field; known are {known}"})
            for name in data if self.typed else ():
                check_type(self.fields[name], data[name])
        return super().to_internal_value(data)


class QuerySerializer(StrictSerializer):
    """A query's parameters: all of them are text."""

    typed = False


class ReasonSerializer(StrictSerializer):
    """The body of an action that needs nothing else."""

    reason = reason_field()


def checked(serializer: type[StrictSerializer], request: Request) -> dict[str, Any]:
    """The request's body (or its query, for DELETE), checked."""
    data = request.query_params.dict() if request.method == "DELETE" else request.data
    bound = serializer(data=data)
    bound.is_valid(raise_exception=True)
    return bound.validated_data
