"""Will it be used again soon? Learned from how long it was without work before. Pure.

The idea of "Serverless in the Wild" (Shahrad et al. 2020): a histogram of the idle times of each function tells how
long keeping it is worth while. A pause that has lasted for so long already is one of those that lasted longer: in the
middle of somebody's session the next request is near, and a while after it is not, at the same rate of requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left

EDGES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
SHORTEST_S = 0.5
FADES = 0.99  # what a pause weighs beside the one after it
# What all of them do counts like so many pauses of its own: the guess about one that is hardly known. And where nothing
# is known of any, the longer it has lasted, the longer it lasts.
PRIOR = 2.0
PRIOR_OF_ALL = 0.2


class Pauses:
    """The pauses of one deployment between its times of work, in buckets that double; or those of all."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = [0.0] * len(EDGES_S)

    def ended(self, pause_s: float) -> None:
        """It was used again after so long."""
        self._counts = [count * FADES for count in self._counts]
        self._counts[min(bisect_left(EDGES_S, pause_s), len(EDGES_S) - 1)] += 1.0

    def again(self, idle_s: float, within_s: float, of_all: Pauses) -> float:
        """The probability that a pause that has lasted ``idle_s`` ends within ``within_s`` more."""
        longer, until = self._longer(idle_s), self._longer(idle_s + within_s)
        all_longer, all_until = of_all._longer(idle_s), of_all._longer(idle_s + within_s)
        guess = within_s / max(within_s + idle_s, SHORTEST_S)
        usual = (all_longer - all_until + PRIOR_OF_ALL * guess) / (all_longer + PRIOR_OF_ALL)
        return (longer - until + PRIOR * usual) / (longer + PRIOR)

    def _longer(self, pause_s: float) -> float:
        """How many lasted longer; within a bucket they are spread evenly over the logarithm."""
        found, low = 0.0, 0.0
        for high, count in zip(EDGES_S, self._counts, strict=True):
            if pause_s <= low:
                found += count
            elif pause_s < high:
                start = math.log(max(low, SHORTEST_S))
                found += (
                    count * (math.log(high) - math.log(max(pause_s, SHORTEST_S))) / (math.log(high) - start)
                )
            low = high
        return found
