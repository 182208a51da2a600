"""Writes over REST that can be repeated and cannot overwrite: ``ETag``, ``If-Match``, ``Idempotency-Key``.

RFC 9110 (conditional requests) and the IETF draft "The Idempotency-Key HTTP Header Field".
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from mmserve.errors import Conflict, IdempotencyKeyReused, InvalidRequest, PreconditionFailed
from registry.models import IdempotentRequest
from registry.rest import actor_of

KEY = re.compile(r"[\x21-\x7e]{1,255}")
KEPT = datetime.timedelta(hours=24)
# A request that has run for longer died with its process: its key is free again.
ABANDONED_AFTER = datetime.timedelta(seconds=60)
SAFE = ("GET", "HEAD", "OPTIONS")

Handler = Callable[..., Response]


def etag_of(data: Any) -> str:
    """A strong validator of a representation."""
    text = json.dumps(data, sort_keys=True, default=str).encode()
    return f'"{hashlib.sha256(text).hexdigest()[:32]}"'


class ConditionalWrites(GenericViewSet):
    """Rows carry an ETag; ``If-None-Match`` saves a read, ``If-Match`` a lost update, a key a doubled POST."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Put the guards around the handler that is about to run."""
        super().initial(request, *args, **kwargs)
        name = str(request.method).lower()
        handler = getattr(self, name, self.http_method_not_allowed)
        if request.method not in SAFE and "If-Match" in request.headers:
            handler = self._all_or_nothing(handler)
        if request.method == "POST" and "Idempotency-Key" in request.headers:
            handler = self._once(handler)
        setattr(self, name, handler)

    def get_object(self) -> Any:
        """The row; locked and compared with ``If-Match`` before it is changed."""
        wanted = self.request.headers.get("If-Match")
        if wanted is None or self.request.method in SAFE:
            return super().get_object()
        row = super().get_object()
        type(row).objects.select_for_update().get(pk=row.pk)
        row.refresh_from_db()
        found = etag_of(self.get_serializer(row).data)
        if wanted.strip() != "*" and found not in _tags(wanted):
            raise PreconditionFailed(
                f"{row} is not in the state that If-Match names any more; its ETag is {found} now.",
                param="If-Match",
            )
        return row

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Any:
        """One row's answer has its ETag; a reader who has it already gets 304."""
        data = getattr(response, "data", None)
        if response.status_code in (200, 201, 202) and isinstance(data, dict) and "id" in data:
            response["ETag"] = etag_of(self.kept(data))
            known = request.headers.get("If-None-Match")
            if known is not None and request.method in SAFE and response["ETag"] in _tags(known):
                response.data, response.status_code = None, 304
        return super().finalize_response(request, response, *args, **kwargs)

    def kept(self, data: Any) -> Any:
        """What of an answer may be kept, and given again; a view with secrets leaves them out."""
        return data

    @staticmethod
    def _all_or_nothing(handler: Handler) -> Handler:
        def guarded(*args: Any, **kwargs: Any) -> Response:
            with transaction.atomic():
                return handler(*args, **kwargs)

        return guarded

    def _once(self, handler: Handler) -> Handler:
        def guarded(request: Request, *args: Any, **kwargs: Any) -> Response:
            row = _begin(request)
            if row.status is not None:
                return Response(row.body, status=row.status, headers={"Idempotency-Replayed": "true"})
            try:
                response = handler(request, *args, **kwargs)
            except Exception:
                # Nothing was changed: the same key may come again.
                row.delete()
                raise
            # As it will be sent: dates and decimals as text.
            row.body = json.loads(json.dumps(self.kept(response.data), default=str))
            row.status = response.status_code
            row.save(update_fields=["status", "body"])
            return response

        return guarded


def _begin(request: Request) -> IdempotentRequest:
    key = request.headers["Idempotency-Key"]
    if not KEY.fullmatch(key):
        raise InvalidRequest(
            "Idempotency-Key: 1 to 255 visible ASCII characters, without spaces", param="Idempotency-Key"
        )
    text = json.dumps([request.method, request.get_full_path(), request.data], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    now = timezone.now()
    IdempotentRequest.objects.filter(created_at__lt=now - KEPT).delete()
    IdempotentRequest.objects.filter(status=None, created_at__lt=now - ABANDONED_AFTER).delete()
    actor = actor_of(request)
    try:
        with transaction.atomic():
            return IdempotentRequest.objects.create(actor=actor, key=key, fingerprint=fingerprint)
    except IntegrityError:
        row = IdempotentRequest.objects.filter(actor=actor, key=key).first()
    if row is not None and row.fingerprint != fingerprint:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came with another request before; use a new one.", param="Idempotency-Key"
        )
    if row is None or row.status is None:
        raise Conflict(
            "A request with this Idempotency-Key is running; ask again for its answer.",
            param="Idempotency-Key",
        )
    return row


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
