"""Ratings of answers whose decisions are still kept: what a scorer can learn from."""

from __future__ import annotations

from routing.core.training import Rated
from routing.experiments.settle import RATING
from routing.models.experiments import Feedback
from routing.situation import judged


def rated_of_feedback() -> list[Rated]:
    """One row for each rating of a request that was decided by its traits."""
    ratings = dict(Feedback.objects.filter(name=RATING).values_list("request_id", "value"))
    return [
        Rated(
            id=one.id, served_id=one.served_id, traits=one.traits, rating=min(1.0, max(0.0, ratings[one.id]))
        )
        for one in judged(list(ratings))
    ]
