"""Lists by cursor: stable while rows come and go, and bounded."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db import DataError
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request

from mmserve.errors import InvalidRequest


class NewestFirst(CursorPagination):
    """``?cursor=…&limit=…``"""

    ordering = "-pk"
    page_size = 50
    max_page_size = 500
    page_size_query_param = "limit"
    # Rows that are alike in what the list is ordered by (ten thousand versions "1") are counted off.
    offset_cutoff = 1_000_000

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any] | None:
        """A page; a cursor that no page gave is a wrong value."""
        try:
            return super().paginate_queryset(queryset, request, view)
        except (NotFound, ValidationError, ValueError, OverflowError, DataError) as error:
            raise InvalidRequest("cursor: no page of this list gave it", param="cursor") from error

    def get_ordering(self, request: Request, queryset: Any, view: Any) -> tuple[str, ...]:
        """What was asked for; rows that are alike in it by their number, or a page could miss one."""
        ordering = super().get_ordering(request, queryset, view)
        return ordering if ordering[0].lstrip("-") in ("pk", "id") else (*ordering, "pk")

    def get_page_size(self, request: Request) -> int:
        """``limit``; a value that cannot be is refused rather than ignored."""
        asked = request.query_params.get(self.page_size_query_param)
        if asked is None:
            return self.page_size
        if (
            not asked.isascii()
            or not asked.isdigit()
            or len(asked) > 4
            or not 0 < int(asked) <= self.max_page_size
        ):
            raise InvalidRequest(
                f"limit: {asked[:20]!r} is not from 1 to {self.max_page_size}", param="limit"
            )
        return int(asked)
