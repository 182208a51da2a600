"""Filters, search and order of the registry's lists; a parameter that means nothing here is refused."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast
from django_filters import rest_framework as filters
from rest_framework.filters import OrderingFilter
from rest_framework.request import Request

from mmserve.errors import InvalidRequest
from registry.models import TAG, Alias, Event, Model, ModelVersion

# Expressions of a view's queryset in the place of fields that may be null.
ORDERED_BY = {"ready_at": "was_ready_at", "-ready_at": "-was_ready_at"}


class StrictOrdering(OrderingFilter):
    """``?ordering=name`` or ``-name``; an unknown field is an error, not ignored."""

    def get_ordering(self, request: Request, queryset: Any, view: Any) -> Any:
        """One field of the view's ``ordering_fields``."""
        asked = request.query_params.get(self.ordering_param)
        if asked is not None and asked.removeprefix("-") not in view.ordering_fields:
            raise InvalidRequest(
                f"ordering: {asked[:50]!r} is none of {', '.join(view.ordering_fields)}, with or without '-'",
                param="ordering",
            )
        found = super().get_ordering(request, queryset, view)
        # Null has no place in an order that a cursor could remember.
        return found and [ORDERED_BY.get(name, name) for name in found]


class TagFilter(filters.CharFilter):
    """Rows whose JSON list has this word; the same in SQLite and PostgreSQL."""

    def filter(self, qs: QuerySet[Any], value: str) -> QuerySet[Any]:
        """A word without quotes stands in the list's text between quotes."""
        if not value:
            return qs
        if not TAG.fullmatch(value):
            raise InvalidRequest(f"{value[:50]!r} is no tag", param=str(self.extra.get("label", "tag")))
        text = f"{self.field_name}_text"
        return qs.annotate(**{text: Cast(self.field_name, TextField())}).filter(
            **{f"{text}__contains": f'"{value}"'}
        )


class ModelFilter(filters.FilterSet):
    """By name, owner, team, licence, tag."""

    tag = TagFilter(field_name="tags")

    class Meta:
        model = Model
        fields = ("name", "owner", "team", "licence")


class VersionFilter(filters.FilterSet):
    """By model, version, state, tag, capability and architecture."""

    tag = TagFilter(field_name="tags")
    capability = TagFilter(field_name="capabilities", label="capability")
    architecture = filters.CharFilter(field_name="facts__architecture")

    class Meta:
        model = ModelVersion
        fields = ("model", "model__name", "version", "state")


class AliasFilter(filters.FilterSet):
    """By model, name, version."""

    class Meta:
        model = Alias
        fields = ("model", "model__name", "name", "version", "is_default")


class EventFilter(filters.FilterSet):
    """By kind, subject, actor and time."""

    since = filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    until = filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")

    class Meta:
        model = Event
        fields = ("kind", "subject", "actor")
