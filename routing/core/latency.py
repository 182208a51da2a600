"""What a deployment's latency will be, learned online from what it was. Pure.

Two linear models, each fitted by recursive least squares with exponential forgetting (Ljung, System Identification,
1999, section 11.2): TTFT over the jobs that waited and the prompt's tokens, TPOT over the streams that ran.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt

from routing.core.live import Latency

# Weight that an observation loses with each one after it: about the last hundred count.
FORGETTING = 0.99
# Before so many answers nothing is claimed: the replicas' own averages serve.
LEAST = 8
# Of the tail: how many answers it needs, and how many it remembers.
TAIL_LEAST, TAIL_WINDOW = 20, 200
# How far a coefficient may be from its prior at first (a variance), and at the most.
PRIOR_VARIANCE = 1.0
MOST_VARIANCE = 1e4
TOKENS = 1000.0  # prompts are counted in thousands, so that both coefficients are of one size
ERROR_WEIGHT = 0.05

Floats = npt.NDArray[np.float64]


class Recursive:
    """y ≈ w·x, with the past forgotten; a few multiplications an observation."""

    __slots__ = ("_p", "w")

    def __init__(self, size: int) -> None:
        self.w: Floats = np.zeros(size)
        self._p: Floats = np.eye(size) * PRIOR_VARIANCE

    def observe(self, x: Floats, y: float) -> None:
        """One more point."""
        px = self._p @ x
        gain = px / (FORGETTING + x @ px)
        self.w = self.w + gain * (y - self.w @ x)
        p = (self._p - np.outer(gain, px)) / FORGETTING
        # Where nothing new is seen in one direction, forgetting alone would let its variance grow without end.
        trace = float(np.trace(p))
        self._p = p if trace <= MOST_VARIANCE else p * (MOST_VARIANCE / trace)


class LatencyLearner:
    """Of one deployment. Times in seconds; ``waiting`` and ``running`` as they were when the request was decided."""

    __slots__ = ("_tpot", "_ttft", "seen", "tpot_error", "ttft_error")

    def __init__(self) -> None:
        self._ttft = Recursive(3)
        self._tpot = Recursive(2)
        self.seen = 0
        # Moving averages of |predicted - measured| / measured.
        self.ttft_error: float | None = None
        self.tpot_error: float | None = None

    def observe(
        self, *, waiting: int, running: int, prompt_tokens: int, ttft_s: float, tpot_s: float | None
    ) -> None:
        """One answer that came from a replica that was up; what cannot be is not believed."""
        if not (math.isfinite(ttft_s) and ttft_s > 0.0):
            return
        x = np.array([1.0, waiting, prompt_tokens / TOKENS])
        if self.seen >= LEAST:
            self.ttft_error = _averaged(self.ttft_error, float(self._ttft.w @ x), ttft_s)
        self._ttft.observe(x, ttft_s)
        self.seen += 1
        if tpot_s is not None and math.isfinite(tpot_s) and tpot_s > 0.0:
            z = np.array([1.0, running])
            if self.seen > LEAST:
                self.tpot_error = _averaged(self.tpot_error, float(self._tpot.w @ z), tpot_s)
            self._tpot.observe(z, tpot_s)

    def latency(self) -> Latency | None:
        """What is known by now; None while too little was seen. No coefficient is below zero."""
        if self.seen < LEAST:
            return None
        base_s, per_waiting_s, per_thousand_s = (max(0.0, float(one)) for one in self._ttft.w)
        tpot_s, per_running_s = (max(0.0, float(one)) for one in self._tpot.w)
        return Latency(
            base_s=base_s,
            per_waiting_s=per_waiting_s,
            per_token_s=per_thousand_s / TOKENS,
            tpot_s=tpot_s,
            tpot_per_running_s=per_running_s,
        )


class Tail:
    """How late first tokens of a deployment come: the last answers' predicted and measured times.

    A short prompt misses its prediction by a larger factor than a long one, so those of about its size speak for it.
    """

    __slots__ = ("_answers",)

    def __init__(self) -> None:
        self._answers: deque[tuple[float, float]] = deque(
            maxlen=TAIL_WINDOW
        )  # predicted (s), measured over it

    def note(self, expected_s: float, measured_s: float) -> None:
        """One more answer; ``expected_s`` is above 0."""
        self._answers.append((expected_s, measured_s / expected_s))

    def p95_s(self, expected_s: float) -> float | None:
        """The 95th percentile by nearest rank of what is expected in so long; None while too little was seen.

        By the answers that were expected within half and twice of it; by all, where those are too few.
        """
        if len(self._answers) < TAIL_LEAST:
            return None
        ratios = [ratio for other_s, ratio in self._answers if expected_s <= 2 * other_s <= 4 * expected_s]
        if len(ratios) < TAIL_LEAST:
            ratios = [ratio for _, ratio in self._answers]
        return sorted(ratios)[math.ceil(0.95 * len(ratios)) - 1] * expected_s


def _averaged(error: float | None, predicted: float, measured: float) -> float:
    found = abs(max(0.0, predicted) - measured) / measured
    return found if error is None else error + ERROR_WEIGHT * (found - error)
