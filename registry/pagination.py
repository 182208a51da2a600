"""Lists by cursor: stable while rows come and go, and bounded."""

from rest_framework.pagination import CursorPagination
from rest_framework.request import Request

from mmserve.errors import InvalidRequest


class NewestFirst(CursorPagination):
    """``?cursor=…&limit=…``"""

    ordering = "-pk"
    page_size = 50
    max_page_size = 500
    page_size_query_param = "limit"

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
