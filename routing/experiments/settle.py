"""What an experiment counts of the usage records: called with each batch, in the batch's own transaction."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from routing.core.records import UsageRecord, counts_for_its_arm
from routing.core.statistics.totals import Outcome, Totals
from routing.core.statistics.units import UnitSample
from routing.experiments.exposures import ExposureRow, insert_exposures
from routing.models.experiments import (
    HOLDOUT_ARM,
    ArmTotals,
    Experiment,
    Exposure,
    Feedback,
    PhaseUnits,
)

RATING = "rating"
# Feedback may come for this long; a rating that comes before its request's record waits for a day.
EXPOSURES_KEPT = datetime.timedelta(days=30)
PENDING_KEPT = datetime.timedelta(days=1)
# A scorer is trained from the ratings of this long. Longer than exposures: what was counted must be known as such
# (beyond MOST_FEEDBACK it is not, and the same value sent again would be counted again).
FEEDBACK_KEPT = datetime.timedelta(days=90)
MOST_EXPOSURES = 1_000_000
MOST_FEEDBACK = 2_000_000
MOST_JOINED = 2_000
MOST_FORGOTTEN = 20_000

Place = tuple[int, int, str]  # experiment, phase, arm


def outcome_of(record: UsageRecord, unit: int) -> Outcome:
    """A usage record as an experiment sees it. A client that left is neither a success nor an error."""
    completed = record.outcome == "completed"
    made = completed and record.completion_tokens > 0
    return Outcome(
        unit=unit,
        failed=counts_for_its_arm(record),
        succeeded=completed,
        cost=record.cost_nano / 1e9,
        output_tokens=record.completion_tokens,
        refused=record.refusal,
        ttft_s=record.ttft_s if made else None,
        tpot_s=record.tpot_s if made and record.completion_tokens > 1 else None,
        e2e_s=record.e2e_s if completed else None,
    )


@transaction.atomic
def settle(records: Iterable[UsageRecord]) -> int:
    """Count the records that were in an experiment; how many there were. Each record must come once."""
    exposed = [record for record in records if record.assignments]
    if not exposed:
        return 0
    names = {name for record in exposed for name in record.assignments}
    rows = {row.name: row for row in Experiment.objects.filter(name__in=names)}
    outcomes: defaultdict[Place, list[Outcome]] = defaultdict(list)
    samples: defaultdict[tuple[int, int], UnitSample] = defaultdict(UnitSample)
    exposures: list[ExposureRow] = []
    arm_ids = _arm_ids(rows.values())
    seconds: dict[int, datetime.datetime] = {}
    for record in exposed:
        second = int(record.at)
        at = seconds.get(second)
        if at is None:
            at = seconds[second] = datetime.datetime.fromtimestamp(second, datetime.UTC)
        for name, arm in record.assignments.items():
            row = rows.get(name)
            phase, _, unit = record.units.get(name, "").partition(".")
            if row is None or not phase.isdigit() or not unit:
                continue  # deleted meanwhile, or of another release
            hashed = int(unit, 16)
            place = (row.pk, int(phase), arm)
            outcomes[place].append(outcome_of(record, hashed))
            samples[row.pk, place[1]].add(hashed, arm_ids.get((row.pk, arm), 0))
            exposures.append((record.request_id, at, record.key, *place, record.served_id, unit))
    for place, found in sorted(outcomes.items()):
        batch = Totals()
        batch.add_all(found)
        add_totals(place, batch)
    for (experiment, number), sample in samples.items():
        _add_units(experiment, number, sample)
    insert_exposures(exposures)
    return len(exposures)


def add_totals(place: Place, batch: Totals) -> None:
    """Add a batch to what is stored; the row is locked where the database can, by everybody in the same order."""
    experiment, phase, arm = place
    row, _ = ArmTotals.objects.select_for_update().get_or_create(
        experiment_id=experiment, phase=phase, arm=arm, defaults={"data": b""}
    )
    stored = Totals.from_bytes(bytes(row.data))
    stored += batch
    row.data, row.requests = stored.to_bytes(), stored.requests
    row.save(update_fields=["data", "requests", "updated_at"])


def _add_units(experiment: int, phase: int, batch: UnitSample) -> None:
    row, _ = PhaseUnits.objects.select_for_update().get_or_create(experiment_id=experiment, phase=phase)
    stored = UnitSample.from_bytes(bytes(row.data))
    stored.merge(batch)
    row.data, row.distinct = stored.to_bytes(), stored.distinct()
    row.save(update_fields=["data", "distinct"])


def _arm_ids(rows: Iterable[Experiment]) -> dict[tuple[int, str], int]:
    found = Experiment.objects.filter(pk__in=[row.pk for row in rows]).values_list(
        "pk", "arms__name", "arms__pk"
    )
    return {(experiment, name): pk for experiment, name, pk in found if name} | {
        (row.pk, HOLDOUT_ARM): 0 for row in rows
    }


@transaction.atomic
def join_feedback() -> int:
    """Count the feedback whose request has been settled meanwhile; how many values were counted."""
    waiting = Feedback.objects.select_for_update().filter(
        pending=True, request_id__in=Exposure.objects.values("request_id")
    )
    rows = list(waiting.order_by("pk")[:MOST_JOINED])
    if not rows:
        return 0
    exposures = Exposure.objects.select_related("experiment").in_bulk([row.request_id for row in rows])
    totals: dict[Place, Totals] = {}
    counted = 0
    for row in rows:
        exposure = exposures[row.request_id]
        row.pending = False
        score = row.name == exposure.experiment.score_name
        # Somebody else's request: kept, but no word in an experiment.
        if row.key not in ("", exposure.key) or not (score or row.name == RATING):
            continue
        place = (exposure.experiment_id, exposure.phase, exposure.arm)
        totals.setdefault(place, Totals()).add_feedback(
            int(exposure.unit, 16), value=row.value, before=row.counted, rating=row.name == RATING
        )
        row.counted = row.value
        counted += 1
    for place, batch in sorted(totals.items()):
        add_totals(place, batch)
    Feedback.objects.bulk_update(rows, ["pending", "counted"], batch_size=500)
    return counted


def forget(now: datetime.datetime | None = None) -> bool:
    """Keep exposures and feedback bounded, by age and by number.

    At most MOST_FORGOTTEN rows of each go at once: whether there may be more to forget.
    """
    now = now or timezone.now()
    Feedback.objects.filter(pending=True, at__lt=now - PENDING_KEPT).update(pending=False)
    gone = (
        _forget_oldest(Exposure.objects.all(), now - EXPOSURES_KEPT, MOST_EXPOSURES),
        _forget_oldest(Feedback.objects.all(), now - FEEDBACK_KEPT, MOST_FEEDBACK),
    )
    return max(gone) >= MOST_FORGOTTEN


def _forget_oldest(rows: QuerySet[Any], before: datetime.datetime, most: int) -> int:
    beyond = rows.order_by("-at").values_list("at", flat=True)[most : most + 1]
    old = rows.filter(at__lte=max([before, *beyond])).order_by("at").values("pk")[:MOST_FORGOTTEN]
    return rows.filter(pk__in=old).delete()[0]
