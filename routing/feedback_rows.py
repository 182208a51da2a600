"""Ratings with what a scorer can learn from: the prompt's traits and the version that answered.

Decisions are kept for a day at most. What they say of a rated request is copied to its rating: when it is given, or
soon after, for one that comes before its decision is written.
"""

from __future__ import annotations

import datetime

from django.utils import timezone

from routing.core.scorer import TRAITS
from routing.core.training import Rated
from routing.experiments.settle import RATING
from routing.models.experiments import Feedback
from routing.situation import judged

# How long after it was given a rating's decision is looked for: by the controller, and when a scorer is trained.
SOON = datetime.timedelta(minutes=1)
DECISIONS_KEPT = datetime.timedelta(days=1)
MOST_AT_ONCE = 1000


def copy_traits(since: datetime.datetime | None = None, most: int = MOST_AT_ONCE) -> int:
    """Look for the decisions of the latest ratings that have no traits yet; how many were found."""
    lacking = Feedback.objects.filter(
        name=RATING, traits__isnull=True, at__gte=since or timezone.now() - SOON
    )
    rows = {row.request_id: row for row in lacking.order_by("-at")[:most]}
    found = judged(list(rows))
    for one in found:
        rows[one.id].served_id, rows[one.id].traits = one.served_id, list(one.traits)
    # Not what came meanwhile: another value, or that it is counted.
    Feedback.objects.bulk_update([rows[one.id] for one in found], ["served_id", "traits"], batch_size=200)
    return len(found)


def rated_of_feedback() -> list[Rated]:
    """One row for each rating of a request whose traits are known."""
    copy_traits(timezone.now() - DECISIONS_KEPT, 100 * MOST_AT_ONCE)
    ratings = Feedback.objects.filter(name=RATING, traits__isnull=False).order_by("pk")
    found = ratings.values_list("request_id", "served_id", "traits", "value")
    return [
        Rated(id=number, served_id=served_id, traits=tuple(traits), rating=min(1.0, max(0.0, value)))
        for number, served_id, traits, value in found.iterator()
        if traits is not None and len(traits) == len(TRAITS)  # of this release's
    ]
