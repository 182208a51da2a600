"""Why requests went where they went: the last decisions, and one by its id."""

from __future__ import annotations

import datetime
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.urls.exceptions import NoReverseMatch
from knox.models import get_token_model

from mmserve.errors import MmserveError, NotFound
from routing.core.cost import in_usd
from routing.core.records import DecisionRecord
from routing.decisions import find_decision, latest_decisions

SHOWN = 100
COLUMNS = (
    "At (UTC)",
    "Decision",
    "Asked for",
    "Route",
    "Served by",
    "Outcome",
    "First token",
    "Whole",
    "Cost",
)
# How people read the scores; "score" is the policy's own figure, the smallest first.
SCORES = {
    "cost_usd": "cost ($)",
    "ttft_s": "TTFT (s)",
    "tpot_s": "TPOT (s)",
    "kv_usage": "KV used",
}
PERMISSION = "routing.view_decisions"
LABELS = {"completed": "success", "cancelled": "warning"}


def decisions_page(request: HttpRequest) -> HttpResponse:
    """The last ones; ``?id=`` goes to one."""
    _check(request)
    asked = request.GET.get("id", "").strip()
    if asked:
        try:
            return HttpResponseRedirect(reverse("decision-page", args=[asked]))
        except NoReverseMatch:
            pass  # no id looks like this: said below
    error, records = "", []
    try:
        records = latest_decisions(SHOWN)
    except MmserveError as away:
        error = away.message
    context = {
        **admin.site.each_context(request),
        "title": "Decisions",
        "error": f"There is no decision {asked[:100]!r}." if asked else error,
        "columns": COLUMNS,
        "rows": [_line(one) for one in records],
        "shown": SHOWN,
    }
    return TemplateResponse(request, "admin/decisions.html", context)


def decision_page(request: HttpRequest, decision_id: str) -> HttpResponse:
    """Candidates, reasons, scores, expectation and outcome of one."""
    _check(request)
    try:
        record = find_decision(decision_id)
    except MmserveError as error:
        status = 404 if isinstance(error, NotFound) else error.status
        context = {**admin.site.each_context(request), "title": "Decision", "error": error.message}
        return TemplateResponse(request, "admin/decisions.html", context, status=status)
    return TemplateResponse(
        request, "admin/decision.html", {**admin.site.each_context(request), **_context(record)}
    )


def _check(request: HttpRequest) -> None:
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied


def _line(record: DecisionRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "url": reverse("decision-page", args=[record.id]),
        "at": datetime.datetime.fromtimestamp(record.at, datetime.UTC),
        "model": record.facts.model,
        "route": record.decision.route or "–",
        "served": record.served_id or "–",
        "outcome": record.outcome,
        "label": LABELS.get(record.outcome, "danger"),
        "ttft": _ms(record.ttft_s),
        "e2e": _ms(record.e2e_s),
        "cost": f"${in_usd(record.cost_nano)}",
    }


def _context(record: DecisionRecord) -> dict[str, Any]:
    decision, facts = record.decision, record.facts
    expected = (record.predicted_ttft_s, record.predicted_tpot_s)
    return {
        "title": f"Decision {record.id}",
        "line": _line(record),
        "asked": [
            ("Model asked for", facts.model),
            ("Route", decision.route or "–"),
            ("Policy", decision.policy),
            ("Endpoint", record.endpoint),
            ("Key", _key(record.key)),
            ("Team", record.team or "–"),
            ("Prompt tokens, about", facts.prompt_tokens_about),
            ("max_tokens", facts.max_tokens if facts.max_tokens is not None else "–"),
            ("Configuration", f"revision {decision.revision}"),
            ("Experiments", ", ".join(f"{name}: {arm}" for name, arm in record.assignments.items()) or "–"),
        ],
        "compared": [
            ("Time to first token", _ms(expected[0]), _ms(record.ttft_s)),
            ("Time per token", _ms(expected[1]), _ms(record.tpot_s)),
            (
                "Cost",
                "–"
                if record.predicted_cost_nano is None
                else f"at most ${in_usd(record.predicted_cost_nano)}",
                f"${in_usd(record.cost_nano)}",
            ),
            ("Served by", decision.chosen or "nobody", record.deployment or "–"),
            *_replicas(record),
        ],
        "names": [SCORES.get(name, name) for name in _score_names(record)],
        "candidates": [
            {
                "id": one.id,
                "model": one.served_id,
                "place": _place(record, one.id),
                "reasons": one.reasons,
                "scores": [_figure(one.scores.get(name)) for name in _score_names(record)],
            }
            for one in sorted(decision.candidates, key=lambda one: _order(record, one.id))
        ],
        "left_out": record.candidates_left_out,
        "preferred_why": record.preferred_why,
        "attempts": record.attempts,
        "problems": decision.problems,
    }


def _key(key_id: str) -> str:
    """By its name, if it is known."""
    try:
        found = get_token_model().objects.filter(pk=key_id).first()
    except ValidationError:  # none of ours: a shadow's copy has no key
        found = None
    return str(found or key_id or "–")


def _replicas(record: DecisionRecord) -> list[tuple[str, str, str]]:
    if not record.preferred_why:
        return []
    return [
        ("Replica", record.preferred or "any", record.replica or "–"),
        ("Prompt's tokens from the cache", "–", f"{record.cached_tokens} of {record.prompt_tokens}"),
    ]


def _score_names(record: DecisionRecord) -> list[str]:
    found: dict[str, None] = {}
    for one in record.decision.candidates:
        found.update(dict.fromkeys(one.scores))
    return list(found)


def _place(record: DecisionRecord, target: str) -> int | None:
    ids = [link.id for link in record.decision.chain]
    return ids.index(target) + 1 if target in ids else None


def _order(record: DecisionRecord, target: str) -> tuple[int, str]:
    return _place(record, target) or len(record.decision.chain) + 1, target


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _ms(seconds: float | None) -> str:
    if not seconds:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
