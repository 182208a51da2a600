"""Scorers: keep what was trained, choose the one in use."""

from __future__ import annotations

from django.db import transaction
from django.db.models import Max

from mmserve.errors import InvalidRequest
from registry.revision import bump
from routing.core.scorer import TRAITS
from routing.core.training import MIN_ROWS, Trained
from routing.models.routes import TrainedScorer


@transaction.atomic
def keep_scorer(trained: Trained, *, actor: str, reason: str = "", use: bool = False) -> TrainedScorer:
    """A new scorer under the next number, with its evaluation; ``use`` puts it to work at once."""
    if not trained.weights:
        few = ", ".join(f"{key} has {count}" for key, count in sorted(trained.left_out.items()))
        raise InvalidRequest(
            f"No version has the {MIN_ROWS} rated answers that it takes to learn from: {few or 'there is none'}."
        )
    evaluation = trained.evaluation
    last = TrainedScorer.objects.aggregate(last=Max("number"))["last"] or 0
    row = TrainedScorer.objects.create(
        number=last + 1,
        weights={key: list(values) for key, values in trained.weights.items()},
        traits=list(TRAITS),
        rows=evaluation.rows,
        evaluation={
            "rows": evaluation.rows,
            "versions": evaluation.versions,
            "log_loss": round(evaluation.loss, 6),
            "log_loss_of_the_average": round(evaluation.mean_loss, 6),
            "gain": round(evaluation.gain, 6),
            "left_out": trained.left_out,
        },
    )
    bump("scorer.trained", str(row), actor, reason, row.evaluation)
    return use_scorer(row, actor=actor, reason=reason) or row if use else row


@transaction.atomic
def use_scorer(row: TrainedScorer | None, *, actor: str, reason: str = "") -> TrainedScorer | None:
    """This one judges quality from now on; None: nobody does."""
    before = TrainedScorer.objects.select_for_update().filter(in_use=True).first()
    if (before.pk if before else None) == (row.pk if row else None):
        return row
    TrainedScorer.objects.filter(in_use=True).update(in_use=False)
    if row is not None:
        TrainedScorer.objects.filter(pk=row.pk).update(in_use=True)
        row.in_use = True
    data = {"from": before.number if before else None, "to": row.number if row else None}
    bump("scorer.used", str(row or before), actor, reason, data)
    return row
