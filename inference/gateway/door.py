"""Requests of one moment stand in line, and those for whom there is no place in the queue are told so at once.

To take a request up costs several times what it costs to refuse it. Whoever takes up two thousand in the order in
which they came tells the last ones after a second that there had only been room for five hundred. So a few are taken
up in each turn of the event loop; the others are looked at (:mod:`inference.gateway.glimpse`), and either stand in
line, first come first served, or are refused. Whoever could have another choice, or is in an experiment, or is not
known yet, is not refused here, but goes the usual way.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from inference.gateway import metrics
from inference.gateway.admission import full
from inference.gateway.auth import INFER, KeyGrant
from inference.gateway.bodies import parse
from inference.gateway.chunks import encode
from inference.gateway.generation import Generator, new_id
from inference.gateway.glimpse import Glimpse, could_be_seen, glimpse
from inference.gateway.headers import error_headers
from inference.gateway.holding import Hold, hold_of
from inference.gateway.plan import Endpoint
from inference.gateway.runtime import GatewayRuntime
from mmserve.errors import MmserveError, QueueFull
from routing.core.table import DeploymentEntry

# Taken up in one turn of the event loop: what a refusal may have to wait for.
AT_ONCE = 4
# While so many come, more than can be taken up, only one is, and none until so long after the last one.
POURING_PER_S = 10_000
PATIENCE_S = 0.005
# For how long is believed which queue a key's requests for a model go to, and what its refusal says.
BELIEVED_S = 0.02
MAX_KNOWN = 1000
# What stands in line is in memory; beyond this, requests are taken up as they come.
MAX_LINE_BYTES = 64 * 2**20


class Caller(Protocol):
    """A connection, as far as the door needs it."""

    def take_up(self, data: bytes) -> None:
        """Have these bytes parsed and answered."""
        ...

    def tell(self, answer: bytes) -> None:
        """Send a whole response."""
        ...

    def is_gone(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Waiting:
    """One in line; ``data`` grows if its client goes on sending."""

    caller: Caller
    data: bytes
    seen: Glimpse
    deployment: str | None = None  # whose queue has one more because of it
    taken: bool = False
    grew: bool = False


@dataclass(slots=True)
class _Place:
    """The one queue that a key's requests for a model can go to."""

    grant: KeyGrant
    deployment: DeploymentEntry
    hold: Hold | None
    route: str
    head: bytes = b""
    body: bytes = b""
    error: QueueFull | None = None
    said_at: float = 0.0
    refused: Counter[Endpoint] = field(default_factory=Counter)


class Door:
    """Owned by the event loop."""

    def __init__(self, runtime: GatewayRuntime, clock: Callable[[], float] = time.monotonic) -> None:
        self._runtime = runtime
        self._clock = clock
        self._line: deque[Waiting] = deque()
        self._line_bytes = 0
        self._counted_at = float("-inf")
        self._came = 0  # since then
        self._poured = False
        self._taken = 0
        self._took_up_at = float("-inf")
        self._turning = False
        self._places: dict[tuple[str, str], _Place | None] = {}
        self._looked_at = float("-inf")
        # Ids for thousands at once: a random one each would take a third of a refusal's time.
        self._ids = new_id()[:16].encode()
        self._numbers = itertools.count()

    def came(self, caller: Caller, data: bytes) -> Waiting | None:
        """The first bytes of a request: taken up, refused, or in line, which is returned."""
        if not could_be_seen(data) or self._line_bytes > MAX_LINE_BYTES:
            caller.take_up(data)
            return None
        self._turn_later()
        if not self._came:
            self._counted_at = self._clock()
        self._came += 1
        fullness = self._runtime.admission.fullness
        free = not self._line and self._taken < AT_ONCE
        if free and self._clock() - fullness.refused_at > BELIEVED_S:
            self._taken += 1
            caller.take_up(data)
            return None
        seen = glimpse(data)
        if seen is None:
            caller.take_up(data)
            return None
        place = self._place_of(seen)
        if place is not None:
            answer = self._refusal(place, seen, for_last=True)
            if answer is not None:
                caller.tell(answer)
                return None
        waiting = Waiting(caller, data, seen)
        if place is not None:
            waiting.deployment = place.deployment.id
            fullness.lined_up(place.deployment.id)
        self._line_bytes += len(data)
        if free:
            self._taken += 1
            self._take_up(waiting)
            return None
        self._line.append(waiting)
        return waiting

    def more(self, waiting: Waiting, data: bytes) -> None:
        """The client of one in line goes on sending; nobody is waited for who sends much."""
        waiting.data += data
        waiting.grew = True
        self._line_bytes += len(data)
        if self._line_bytes > MAX_LINE_BYTES:
            self._take_up(waiting)

    def _turn_later(self) -> None:
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Once in a turn of the event loop, while somebody comes or stands in line."""
        self._turning = False
        self._report()
        now = self._clock()
        most = AT_ONCE
        if self._pours(now):  # to tell them comes first
            most = 1 if now - self._took_up_at > PATIENCE_S else 0
        self._taken = 0
        while self._line and self._taken < most:
            waiting = self._line.popleft()
            if waiting.taken:
                continue
            answer = self._late_refusal(waiting)
            if answer is None:
                self._taken += not waiting.caller.is_gone()
                self._take_up(waiting)
            else:
                self._leaves(waiting)
                waiting.caller.tell(answer)
        if self._line:
            self._turn_later()

    def _pours(self, now: float) -> bool:
        passed_s = now - self._counted_at
        if passed_s > PATIENCE_S:
            self._poured = self._came >= POURING_PER_S * passed_s
            self._came = 0
        return self._poured or self._came >= POURING_PER_S * PATIENCE_S

    def _late_refusal(self, waiting: Waiting) -> bytes | None:
        """For whom there seemed to be a place, and is none: others took it."""
        if waiting.deployment is None or waiting.grew or waiting.caller.is_gone():
            return None
        place = self._place_of(waiting.seen)
        return None if place is None else self._refusal(place, waiting.seen, for_last=False)

    def _leaves(self, waiting: Waiting) -> None:
        waiting.taken = True
        self._line_bytes -= len(waiting.data)
        if waiting.deployment is not None:
            self._runtime.admission.fullness.left_line(waiting.deployment)

    def _take_up(self, waiting: Waiting) -> None:
        self._leaves(waiting)
        if waiting.caller.is_gone():
            return
        self._took_up_at = self._clock()
        if waiting.deployment is not None:
            self._runtime.admission.fullness.taken_up(waiting.deployment, self._took_up_at)
        waiting.caller.take_up(waiting.data)

    def _place_of(self, seen: Glimpse) -> _Place | None:
        now = self._clock()
        if now - self._looked_at > BELIEVED_S or len(self._places) >= MAX_KNOWN:
            self._report()
            self._places.clear()
            self._looked_at = now
        known = (seen.raw_key, seen.model)
        if known not in self._places:
            self._places[known] = self._find_place(seen)
        return self._places[known]

    def _find_place(self, seen: Glimpse) -> _Place | None:
        """None where the usual way may find something else than that one queue."""
        runtime = self._runtime
        if not runtime.is_ready or runtime.stopping.is_set():
            return None
        grant = runtime.authenticator.remembered(seen.raw_key)
        table = runtime.table.current()
        if grant is None or INFER not in grant.scopes or table.experiments.split(seen.model):
            return None
        try:
            slate = table.slate(seen.model)
        except MmserveError:
            return None
        if len(slate) != 1 or (grant.allowed_models and slate.barred(grant.allowed_models)[0]):
            return None
        deployment = table.deployments.get(slate.ids[0])
        if deployment is None:
            return None
        load = runtime.live.loads.get(deployment.id)
        hold = None if load is not None and load.ready else hold_of(deployment, runtime.live)
        return _Place(grant, deployment, hold, slate.route or "")

    def _refusal(self, place: _Place, seen: Glimpse, *, for_last: bool) -> bytes | None:
        """The whole response, if there is certainly no place; None: stand in line."""
        runtime = self._runtime
        now = self._clock()
        waiting = runtime.admission.waiting_if_full(place.deployment, place.hold, now, for_last=for_last)
        if waiting is None:
            return None
        if place.error is None or now - place.said_at > BELIEVED_S:
            drain_per_s = runtime.live.drain_per_s(place.deployment.id)
            place.error = full(waiting, place.deployment, place.hold, drain_per_s)
            place.head, place.body = _response(place.error, runtime.table.revision)
            place.said_at = now
        generator = runtime.generator
        if generator.keeps(place.error):
            try:
                plan = parse(seen.body, seen.endpoint)
            except MmserveError:
                return None
            decision_id = generator.turned_away(plan, place.grant, place.error).encode()
        else:
            decision_id = b"%s%08x" % (self._ids, next(self._numbers))
            place.refused[seen.endpoint] += 1
        return b"%sx-request-id: %s\r\nx-mmserve-decision: %s\r\n\r\n%s" % (
            place.head,
            seen.request_id or decision_id,
            decision_id,
            place.body,
        )

    def _report(self) -> None:
        """Count what was refused since the last time."""
        for (_, model), place in self._places.items():
            if place is not None and place.refused:
                self._count(self._runtime.generator, model, place)

    @staticmethod
    def _count(generator: Generator, model: str, place: _Place) -> None:
        assert place.error is not None
        for endpoint, times in place.refused.items():
            generator.turned_away_unread(
                place.grant,
                place.error,
                model=model,
                route=place.route,
                served_id=place.deployment.served_id,
                endpoint=endpoint,
                times=times,
            )
            metrics.count(endpoint, place.error.status, times=times)
        place.refused.clear()


def _response(error: QueueFull, revision: int | None) -> tuple[bytes, bytes]:
    """The response up to the headers that are of one request alone, and its body."""
    body = encode(error.envelope())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *error_headers(error),
    ]
    if revision is not None:
        headers.append((b"x-mmserve-revision", b"%d" % revision))
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 %d Too Many Requests\r\n%s" % (error.status, lines), body
