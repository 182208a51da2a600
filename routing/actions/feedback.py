"""Feedback for single requests: a rating and named scores. It may come early, late, and again."""

from __future__ import annotations

import re
from collections.abc import Mapping

from django.db import transaction

from mmserve.errors import NotFound
from routing.experiments.settle import RATING
from routing.models.experiments import Exposure, Feedback
from routing.situation import judged

# Ours: "chatcmpl-…" and "cmpl-…" are the answer's id, the bare number is the header x-mmserve-decision.
REQUEST_ID = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{24})")


def give_feedback(
    request_id: str, *, key: str, rating: float | None = None, scores: Mapping[str, float] | None = None
) -> list[Feedback]:
    """Keep what was said; the same again changes nothing, another value takes the former's place.

    ``key`` is the access key that asks, "" for one that may manage; only the request's own key may judge it.
    """
    found = REQUEST_ID.fullmatch(request_id)
    if found is None:
        raise NotFound(f"There is no request {request_id[:60]!r}.", param="request_id")
    number = found[1]
    # Most decisions are gone long before the scorer learns from them.
    learned = {one.id: one for one in judged([number])}.get(number) if rating is not None else None
    with transaction.atomic():
        kept = _keep(
            request_id, number, key, {**({} if rating is None else {RATING: rating}), **(scores or {})}
        )
        for row in kept:
            if learned is not None and row.name == RATING and row.traits is None:
                row.served_id, row.traits = learned.served_id, list(learned.traits)
                row.save(update_fields=["served_id", "traits"])
    return kept


def _keep(request_id: str, number: str, key: str, values: Mapping[str, float]) -> list[Feedback]:
    owner = Exposure.objects.filter(pk=number).values_list("key", flat=True).first()
    others = Feedback.objects.filter(request_id=number).exclude(key__in=(key, ""))
    if key and ((owner is not None and owner != key) or others.exists()):
        raise NotFound(f"There is no request {request_id[:60]!r} of this key.", param="request_id")
    kept = []
    for name, value in values.items():
        row, made = Feedback.objects.select_for_update().get_or_create(
            request_id=number, name=name, defaults={"value": value, "key": key}
        )
        if not made and row.value != value:
            row.value, row.pending = value, True
            row.save(update_fields=["value", "pending", "at"])
        kept.append(row)
    return kept
