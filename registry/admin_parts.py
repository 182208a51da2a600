"""Small pieces of admin pages: figures in words, bars, tables."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

KIB = 1024
# HTML in the text is shown, not obeyed; only http, https and mailto links become links.
MARKDOWN = MarkdownIt("js-default")


def in_bytes(count: float | None) -> str:
    """``536223056`` as ``511.4 MiB``."""
    if count is None:
        return "–"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < KIB:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= KIB
    return f"{amount:.1f} TiB"


def in_short(count: int | None) -> str:
    """``134515008`` as ``134.5 M``."""
    if count is None:
        return "–"
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"


def in_utc(moment: datetime.datetime | None) -> str:
    """``2026-11-23 14:03:12``"""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "–"


def bar(done: float, total: float | None, text: str, *, danger_above: float | None = None) -> SafeString:
    """A bar with its figures in words."""
    percent = round(min(100.0, 100 * done / total), 1) if total else 0
    danger = danger_above is not None and percent > danger_above
    return render_to_string("admin/parts/bar.html", {"percent": percent, "text": text, "danger": danger})


def label(text: str, kinds: Mapping[str, str]) -> SafeString:
    """A word on its colour, on a list and on a page alike; ``kinds`` are unfold's, by word."""
    context = {"text": text, "type": kinds.get(text, "default")}
    return render_to_string("unfold/helpers/label.html", context)


def facts_table(rows: Iterable[tuple[str, Any]]) -> SafeString:
    """Names and values, in columns."""
    return render_to_string("admin/parts/facts.html", {"rows": list(rows)})


def log_text(text: str) -> SafeString:
    """A log's tail, as it is."""
    return render_to_string("admin/parts/log.html", {"text": text})


def markdown(text: str) -> SafeString | str:
    """Markdown as HTML; whatever HTML it holds is escaped."""
    if not text:
        return "–"
    html = mark_safe(MARKDOWN.render(text))  # noqa: S308
    return render_to_string("admin/parts/markdown.html", {"html": html})


def links_list(links: list[dict[str, str]]) -> SafeString | str:
    """Links to open; the rows hold http and https alone."""
    return render_to_string("admin/parts/links.html", {"links": links}) if links else "–"


def progress_bars(row: Any, bars: list[SafeString], *, watched: bool) -> SafeString:
    """Bars of what is under way; ``watched``: they keep themselves up to date."""
    return render_to_string("admin/parts/progress.html", {"row": row, "bars": bars, "watched": watched})


def in_red(words: list[str]) -> SafeString | str:
    """Words that an operator must not overlook; none: a dash."""
    return render_to_string("admin/parts/red.html", {"words": words}) if words else "–"
