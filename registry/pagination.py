"""Lists by cursor: stable while rows come and go, and bounded."""

from rest_framework.pagination import CursorPagination


class NewestFirst(CursorPagination):
    """``?cursor=…&limit=…``"""

    ordering = "-pk"
    page_size = 50
    max_page_size = 500
    page_size_query_param = "limit"
