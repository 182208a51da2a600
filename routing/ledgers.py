"""How a budget stands now: from its ledger in Redis, else from the stored usage."""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

import redis

from routing.connection import connection
from routing.core.cost import LEDGERS_KEY, Ledger, period_label
from routing.models import Budget
from routing.spending import budget_entry, spent_of

log = logging.getLogger(__name__)


class Standing(NamedTuple):
    """Nano-dollars of the present period."""

    spent_nano: int
    held_nano: int
    live: bool  # from the ledger; else from the rows, some seconds behind


def standing(row: Budget) -> Standing:
    """What is spent and held."""
    entry, now = budget_entry(row), time.time()
    try:
        raw: Any = connection().hget(LEDGERS_KEY, entry.place)
    except redis.RedisError as error:
        log.warning("a ledger cannot be read: %s", error)
        raw = None
    if raw is None:
        return Standing(spent_of(entry, now).nano, 0, False)
    ledger = Ledger.read(raw)
    current = ledger.period >= period_label(entry.period, now)
    return Standing(ledger.spent_nano if current else 0, ledger.held_nano, True)
