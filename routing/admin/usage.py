"""The page of what was used and spent."""

from __future__ import annotations

import datetime
import json
from typing import Any

import redis
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from unfold.admin import ModelAdmin

from registry.admin_base import ReadOnly
from routing import reports, rollup
from routing.connection import connection
from routing.core.cost import in_usd
from routing.core.records import USAGE_MOST
from routing.models import UsageCursor, UsageHour

DAYS = 30
TOP = 8
COLOURED = 5
COLOURS = ("var(--color-primary-600)", "#0ea5e9", "#10b981", "#f59e0b", "#ef4444", "#94a3b8")
INK = "#7c8798"  # to be read on white and on black: a canvas does not know the theme
USD = "USD"
TOKENS = "tokens"
# What the tables show: the title, what is summed by, and the heading of the first column.
TABLES = (
    ("Models", "model", "Model"),
    ("Keys", "key", "Key"),
    ("Teams", "team", "Team"),
    ("Routes", "route", "Route"),
)


@admin.register(UsageHour)
class UsagePage(ReadOnly, ModelAdmin):
    """Spend by day, and who and what it was for."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """One page of sums in place of rows."""
        if not self.has_view_permission(request):
            return super().changelist_view(request, extra_context)
        unit, data = chart()
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": "Usage",
            "days": DAYS,
            "figures": figures(),
            "chart_title": "Spend by day, UTC" if unit == USD else "Tokens by day, UTC: nothing had a price",
            "chart": json.dumps(data),
            "chart_options": json.dumps(chart_options(unit)),
            "tables": [(title, heading, table(by)) for title, by, heading in TABLES],
            "alarm": alarm(),
        }
        return TemplateResponse(request, "admin/usage.html", context)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Usage is for the record."""
        return False


def figures() -> list[tuple[str, str]]:
    """The numbers at the top."""
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    day = reports.totals(reports.Asked(since=today))
    month = reports.totals(reports.Asked(since=today.replace(day=1)))
    return [
        ("Spent today (UTC)", dollars(day["cost_usd"])),
        ("Spent this month", dollars(month["cost_usd"])),
        ("Requests today", f"{day['requests']:,}"),
        ("Errors today", f"{day['errors']:,}"),
        ("Tokens today", f"{tokens(day):,}"),
    ]


def chart_options(unit: str) -> dict[str, Any]:
    """Chart.js options: stacked bars, the unit beside the axis."""
    return {
        "animation": False,
        "responsive": True,
        "maintainAspectRatio": False,
        "maxBarThickness": 28,
        "plugins": {
            "legend": {
                "position": "top",
                "align": "end",
                "labels": {"boxWidth": 10, "boxHeight": 10, "color": INK},
            }
        },
        "scales": {
            "x": {"stacked": True, "grid": {"display": False}, "ticks": {"color": INK}},
            "y": {
                "stacked": True,
                "beginAtZero": True,
                "title": {"display": True, "text": unit, "color": INK},
                "ticks": {"color": INK},
            },
        },
    }


def chart() -> tuple[str, dict[str, Any]]:
    """USD, or tokens where nothing had a price, and Chart.js data.

    A bar a day, a colour a model; those with least are one colour.
    """
    first = (timezone.now() - datetime.timedelta(days=DAYS - 1)).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    days = [(first + datetime.timedelta(days=number)).date().isoformat() for number in range(DAYS)]
    rows, _ = reports.report(reports.Asked(by=("day", "model"), since=first), limit=DAYS * 1000)
    unit = USD if any(float(row["cost_usd"]) for row in rows) else TOKENS
    used: dict[str, dict[str, float]] = {}
    for row in rows:
        by_day = used.setdefault(row["model"] or "refused before a choice", {})
        by_day[row["day"].date().isoformat()] = float(row["cost_usd"]) if unit == USD else tokens(row)
    order = sorted(used, key=lambda model: (-sum(used[model].values()), model))
    series = [(model, used[model]) for model in order[:COLOURED]]
    if len(order) > COLOURED:
        others: dict[str, float] = {}
        for model in order[COLOURED:]:
            for day, amount in used[model].items():
                others[day] = others.get(day, 0.0) + amount
        series.append((f"{len(order) - COLOURED} others", others))
    return unit, {
        "labels": [day[5:] for day in days],
        "datasets": [
            {"label": model, "data": [by_day.get(day, 0) for day in days], "backgroundColor": colour}
            for (model, by_day), colour in zip(series, COLOURS, strict=False)
        ],
    }


def tokens(row: dict[str, Any]) -> int:
    """Of prompts and answers."""
    return int(row["prompt_tokens"] + row["completion_tokens"])


def table(by: str) -> list[dict[str, Any]]:
    """The groups that cost most in these days."""
    rows = reports.top(reports.Asked(by=(by,)), TOP)
    most = max((float(row["cost_usd"]) for row in rows), default=0.0) or 1.0
    return [
        {
            "name": (row.get("key_name") or row[by]) or "–",
            "requests": f"{row['requests']:,}",
            "errors": f"{row['errors']:,}",
            "tokens": f"{tokens(row):,}",
            "cost": dollars(row["cost_usd"]),
            "percent": round(100 * float(row["cost_usd"]) / most, 1),
        }
        for row in rows
    ]


def alarm() -> str:
    """What an operator must know of the roll-up, or ""."""
    try:
        found = str(rollup.lag(connection(), USAGE_MOST)["alarm"])
    except redis.RedisError:
        return "Redis is away: what was used lately is not in these figures."
    unreadable = sum(UsageCursor.objects.values_list("unreadable", flat=True))
    if unreadable:
        found += f" {unreadable:,} usage records could not be read: what they cost is in the controller's log alone."
    return found.strip()


def dollars(usd: str) -> str:
    """``0.0000435`` is shown whole, ``12.3456789`` to the cent."""
    value = float(usd)
    if value >= 1:
        return f"${value:,.2f}"
    return (
        f"${usd}" if len(usd) <= 8 else f"${value:.3g}" if value >= 1e-4 else f"${in_usd(round(value * 1e9))}"
    )
