"""Which replica a request prefers, as this process knows it: by what was accepted, beats, and what it sent."""

from __future__ import annotations

from itertools import islice

from inference.gateway import metrics
from inference.gateway.config import GatewayConfig
from inference.gateway.flight import Flight
from inference.gateway.live import LiveState
from inference.gateway.plan import Plan
from routing.core.affinity import Bounds, InHand, Preference, Prefixes

# About four of vLLM's blocks of 16 tokens: the text is not tokenized here.
BLOCK_CHARS, BLOCK_TOKENS = 256, 64
# Beyond so many, whoever shares a beginning shares enough of it.
MOST_BLOCKS = 128


class Affinity:
    """Of one gateway process, owned by its event loop. Without two ready replicas a deployment has no use for it."""

    def __init__(self, live: LiveState, config: GatewayConfig) -> None:
        self._live = live
        self._on = config.affinity
        self._prefixes = Prefixes(
            Bounds(factor=config.affinity_factor, slack=config.affinity_slack, blocks=config.affinity_blocks)
        )
        # Streams of this process by replica: sent there, or running there. Beats are half a second old.
        self._in_hand: dict[str, int] = {}

    def look(self, plan: Plan, deployment: str) -> Preference | None:
        """What a request would prefer; None where there is no choice, or its prompt is too short to matter."""
        return self._find(plan, deployment)[0]

    def place(self, flight: Flight) -> str:
        """The replica that the flight's next job prefers, or ""; it is counted there from now on."""
        preference, flight.blocks = self._find(flight.plan, flight.deployment.id)
        flight.preference = preference
        if preference is None or not preference.replica:
            return ""
        self._count(flight, preference.replica)
        if not preference.matched:
            # The next that begins so may come before this one is accepted.
            self._prefixes.learn(flight.blocks, preference.replica)
        return preference.replica

    def accepted(self, flight: Flight, replica: str) -> None:
        """A replica has the flight's job in its batch, and soon the prompt in its cache."""
        self._count(flight, replica)
        if flight.blocks:
            self._prefixes.learn(flight.blocks, replica)
        if flight.preference is not None and flight.preference.replica:
            (metrics.affinity_kept if flight.preference.replica == replica else metrics.affinity_moved).inc()

    def left(self, flight: Flight) -> None:
        """The flight's job is over, here or anywhere."""
        self._count(flight, "")

    def _find(self, plan: Plan, deployment: str) -> tuple[Preference | None, list[int]]:
        ready = self._live.ready(deployment) if self._on else ()
        if len(ready) < 2:
            return None, []
        blocks = blocks_of(plan, deployment)
        if not blocks:
            return None, []
        loads = {
            beat.replica: InHand(
                max(beat.running + beat.waiting, self._in_hand.get(beat.replica, 0)), beat.max_streams
            )
            for beat in ready
        }
        return self._prefixes.prefer(blocks, loads, plan.choices), blocks

    def _count(self, flight: Flight, replica: str) -> None:
        before, streams = flight.counted_at, flight.plan.choices
        if before == replica:
            return
        flight.counted_at = replica
        if before:
            left = self._in_hand[before] - streams
            if left:
                self._in_hand[before] = left
            else:
                del self._in_hand[before]
        if replica:
            self._in_hand[replica] = self._in_hand.get(replica, 0) + streams


def blocks_of(plan: Plan, deployment: str) -> list[int]:
    """Chained hashes of the whole blocks that the prompt begins with; of several prompts, of the first one."""
    prompt: str | list[int]
    if plan.messages is not None:
        prompt = "".join(
            f"\n{message.get('role')}\n{message.get('content') or ''}"[: BLOCK_CHARS * MOST_BLOCKS]
            for message in islice(plan.messages, MOST_BLOCKS)
        )
    else:
        prompt = plan.prompts[0] if plan.prompts else ""
    size = BLOCK_CHARS if isinstance(prompt, str) else BLOCK_TOKENS
    found = []
    link = hash(deployment)
    for start in range(0, min(len(prompt) // size, MOST_BLOCKS) * size, size):
        part = prompt[start : start + size]
        link = hash((link, part if isinstance(part, str) else tuple(part)))
        found.append(link)
    return found
