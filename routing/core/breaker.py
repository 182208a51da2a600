"""A circuit breaker: who fails often is left alone for a while, then tried with one request at a time. Pure.

Source: Nygard, Release It! (2007), in the form of a rolling window as in Netflix' Hystrix. A client's own mistake
says nothing of a deployment, and is not told to it; a success counts when the answer has ended, not when it begins.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

# It opens when of at least LEAST requests that ended within WINDOW_S, this share has failed.
WINDOW_S = 30.0
LEAST = 5
FAILED_SHARE = 0.5
# How long it stays open at first, and at the most: each probe that fails doubles it.
FIRST_COOLDOWN_S = 5.0
LONGEST_COOLDOWN_S = 60.0
# Probes in a row that must succeed before it closes.
PROBES = 3
# A probe that nobody heard of any more does not block the next one for ever.
PROBE_LOST_AFTER_S = 120.0
MOST_REMEMBERED = 1000


class State(StrEnum):
    """``half_open``: one request at a time is let through, to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Of one deployment, in one process; ``now`` is a monotonic clock in seconds."""

    __slots__ = ("_cooldown_s", "_ended", "_failed", "_opened_at", "_probe_at", "_proved", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._ended: deque[tuple[float, bool]] = deque(maxlen=MOST_REMEMBERED)  # when, and whether it failed
        self._failed = 0
        self._opened_at = 0.0
        self._cooldown_s = FIRST_COOLDOWN_S
        self._probe_at: float | None = None
        self._proved = 0

    def lets_through(self, now: float) -> bool:
        """Whether a request may go there now; an open one becomes half open when its time is over."""
        if self.state is State.OPEN and now - self._opened_at >= self._cooldown_s:
            self.state, self._proved, self._probe_at = State.HALF_OPEN, 0, None
        if self.state is State.HALF_OPEN:
            return self._probe_at is None or now - self._probe_at >= PROBE_LOST_AFTER_S
        return self.state is State.CLOSED

    def began(self, now: float) -> None:
        """A request goes there."""
        if self.state is State.HALF_OPEN:
            self._probe_at = now

    def succeeded(self, now: float) -> None:
        """A request has ended well, to its last token."""
        if self.state is State.HALF_OPEN:
            self._probe_at = None
            self._proved += 1
            if self._proved >= PROBES:
                self._close()
        elif self.state is State.CLOSED:
            self._note(now, failed=False)

    def failed(self, now: float) -> None:
        """A request has failed by the deployment's fault."""
        if self.state is State.HALF_OPEN:
            self._open(now, min(LONGEST_COOLDOWN_S, 2 * self._cooldown_s))
        elif self.state is State.CLOSED:
            self._note(now, failed=True)
            if len(self._ended) >= LEAST and self._failed >= FAILED_SHARE * len(self._ended):
                self._open(now, FIRST_COOLDOWN_S)

    def left(self) -> None:
        """A request has ended without saying anything of the deployment: its client left, or was wrong."""
        if self.state is State.HALF_OPEN:
            self._probe_at = None

    def _note(self, now: float, *, failed: bool) -> None:
        if len(self._ended) == MOST_REMEMBERED:
            self._forget_first()
        self._ended.append((now, failed))
        self._failed += failed
        while self._ended[0][0] < now - WINDOW_S:
            self._forget_first()

    def _forget_first(self) -> None:
        self._failed -= self._ended.popleft()[1]

    def _open(self, now: float, cooldown_s: float) -> None:
        self.state, self._opened_at, self._cooldown_s = State.OPEN, now, cooldown_s

    def _close(self) -> None:
        self.state, self._failed, self._cooldown_s = State.CLOSED, 0, FIRST_COOLDOWN_S
        self._ended.clear()
