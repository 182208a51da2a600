"""The controller's thread that rolls usage up, so that a slow reconcile never keeps it waiting."""

from __future__ import annotations

import logging
import threading
import time

import redis
from django.db import DatabaseError, close_old_connections, connections

from inference.notify import connection
from routing import rollup
from routing.core.records import USAGE_MOST

log = logging.getLogger(__name__)

EVERY_S = 1.0
FORGET_EVERY_S = 600.0
ALARM_EVERY_S = 60.0


class UsageThread(threading.Thread):
    """Works while ``leading`` is set. Two leaders at once do no harm: they wait for each other's transaction."""

    def __init__(self, leading: threading.Event, stop: threading.Event) -> None:
        super().__init__(name="usage", daemon=True)
        self._leading = leading
        self._stop_asked = stop
        self._forgot_at = 0.0
        self._warned_at = float("-inf")

    def run(self) -> None:
        """Until asked to stop."""
        try:
            while not self._stop_asked.wait(EVERY_S):
                if self._leading.is_set():
                    self._turn()
        finally:
            connections.close_all()

    def _turn(self) -> None:
        try:
            close_old_connections()
            rollup.roll_up_all(connection())
            if time.monotonic() - self._forgot_at > FORGET_EVERY_S:
                rollup.forget_old_minutes()
                self._forgot_at = time.monotonic()
            self._warn()
        except (redis.RedisError, DatabaseError) as error:
            log.warning("usage is not rolled up now: %s", error)
        except Exception:
            # A fault of one batch must not end the counting of all that come after it.
            log.exception("usage is not rolled up now")

    def _warn(self) -> None:
        found = rollup.lag(connection(), USAGE_MOST)
        if found["alarm"] and time.monotonic() - self._warned_at > ALARM_EVERY_S:
            log.error("%s", found["alarm"])
            self._warned_at = time.monotonic()
