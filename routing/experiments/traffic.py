"""How much traffic a target has."""

from __future__ import annotations

import datetime

from django.db.models import Min, Q, Sum
from django.utils import timezone

from routing.models.experiments import Experiment
from routing.models.usage import UsageHour

LOOKED_BACK = datetime.timedelta(days=7)
DAY_S = 86_400.0
LEAST_S = 3600.0


def requests_per_day(row: Experiment) -> float | None:
    """Of the last week, or of the part of it in which there was any; None while nobody has counted.

    A model's usage is listed by its name whatever alias was asked for: for one alias of several it is a bound.
    """
    now = timezone.now()
    name = row.target.partition("@")[0]
    asked = Q(route=row.target) if row.target == name else Q()
    found = UsageHour.objects.filter(asked | Q(model=name), hour__gte=now - LOOKED_BACK).aggregate(
        total=Sum("requests"), first=Min("hour")
    )
    if not found["total"]:
        return None
    return found["total"] / (max(LEAST_S, (now - found["first"]).total_seconds()) / DAY_S)
