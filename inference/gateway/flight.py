"""One request in flight: the events of its attempts, in order, for the coroutine that answers the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from inference.gateway.auth import KeyGrant
from inference.gateway.declining import OPENING_CHARS
from inference.gateway.fallback import Mover
from inference.gateway.ledger import Reservation
from inference.gateway.plan import Plan
from inference.protocol import ACCEPTED, DELTA, DONE, ERROR, GenerateRequest, queue_name
from mmserve.errors import MmserveError, from_wire
from routing.core.affinity import Preference
from routing.core.table import DeploymentEntry

Event = list[Any]

# Kinds that only the gateway makes, beside those of inference.protocol.
RESTARTED, FAILED, IDLE, GONE, STATUS = 100, 101, 102, 103, 104

# What is said of the request and its client, whichever attempt answers.
OF_THE_REQUEST = (IDLE, STATUS, GONE)

# A request that is not heard of for this long is asked about.
SILENCE_S = 1.0
# Beyond this many events that a slow reader has not taken, neighbouring deltas become one.
MERGE_BEYOND = 256

# What is of an attempt, and not of the request.
OF_AN_ATTEMPT = (
    "_echoed", "accepted_at", "blocks", "cached_tokens", "completion_tokens", "crowd", "deployment", "engine_s",
    "expected_s", "finished_choices", "first_token_at", "heard_at", "inquiries", "job_id", "missing", "next_seq",
    "opening", "preference", "probe_at", "prompt_tokens", "queued_s", "replica", "tokens", "unknown_to",
)  # fmt: skip


class Flight:
    """Owned by the event loop; the hub adds events, the answering coroutine takes them."""

    __slots__ = (
        "_echoed",
        "_waiter",
        "accepted_at",
        "attempt",
        "begun_at",
        "blocks",
        "cached_tokens",
        "committed",
        "completion_tokens",
        "counted_at",
        "crowd",
        "deadline_at",
        "delivered",
        "deployment",
        "engine_s",
        "expected_s",
        "finished_choices",
        "first_token_at",
        "first_token_by",
        "grant",
        "heard_at",
        "idle_after_s",
        "inquiries",
        "job_id",
        "missing",
        "mover",
        "on_first",
        "opening",
        "next_seq",
        "over",
        "pending",
        "plan",
        "preference",
        "probe_at",
        "prompt_tokens",
        "queued_s",
        "recovering",
        "replica",
        "request",
        "reservations",
        "sent_at",
        "status_at",
        "tokens",
        "unknown_to",
        "wants_status",
    )

    def __init__(
        self,
        request: GenerateRequest,
        plan: Plan,
        grant: KeyGrant,
        deployment: DeploymentEntry,
        *,
        deadline_at: float,
    ) -> None:
        now = time.monotonic()
        self.request = request
        self.plan = plan
        self.grant = grant
        self.deployment = deployment
        self.deadline_at = deadline_at  # monotonic
        self.begun_at = self.heard_at = self.sent_at = now
        self.first_token_at: float | None = None
        self.idle_after_s: float | None = None
        self.wants_status = False  # the client asked to be told what it waits for
        self.status_at = 0.0
        self.attempt = 0
        self.job_id = ""
        self.pending: list[Event] = []
        self.delivered = False  # the client has had text of the present attempt or one that it continues
        self.committed = False  # the client knows who answers: nobody else may
        self.mover: Mover | None = None  # asked before the request fails, while there are other choices
        self.first_token_by: float | None = None  # monotonic; past it another choice is tried
        self.crowd: tuple[int, int] | None = (
            None  # who waited and ran there when it came; None: it was not up
        )
        self.expected_s = 0.0  # until its first token, as it was predicted when it was sent
        self.on_first: Callable[[], None] | None = None  # told once of its first token
        self.blocks: list[int] = []  # of its prompt, where replicas may differ in having seen them
        self.preference: Preference | None = None
        self.counted_at = ""  # the replica in whose hands it is counted
        self.over = False
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.queued_s = 0.0
        self.engine_s = 0.0  # its share of the engine's time, once it is done
        self.accepted_at: float | None = None
        self.reservations: list[Reservation] = []  # what is held of budgets until it is settled
        self.tokens: list[int] = []  # of the answer, all choices
        self.opening: str | None = None  # of the answer's text, where an experiment wants it
        self._echoed: set[int] = set()
        self._waiter: asyncio.Future[None] | None = None
        self.begin_attempt()

    def begin_attempt(self) -> None:
        """Wait for the events of a new job from its first."""
        self.attempt += 1
        self.job_id = f"{self.request.request_id}-{self.attempt}"
        self.next_seq = 0
        self.replica: str | None = None
        self.heard_at = time.monotonic()
        self.probe_at = 0.0
        self.inquiries = 0
        self.missing = False
        self.unknown_to: set[str] = set()
        self.finished_choices = 0
        self.recovering = False

    def forget_answer(self) -> None:
        """Nothing of the present attempt counts: the answer is made anew."""
        self.tokens.clear()
        self.opening = None if self.opening is None else ""
        self._echoed.clear()
        self.first_token_at = self.accepted_at = None
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.start_anew()

    def start_anew(self) -> None:
        """What waits to be taken of an attempt is nothing to the client any more."""
        self.pending = [event for event in self.pending if event[2] in OF_THE_REQUEST]
        self.push([self.job_id, -1, RESTARTED])

    @property
    def queue(self) -> str:
        """The RQ queue of the present attempt."""
        return queue_name(self.deployment.id, self.request.priority)

    @property
    def accepted(self) -> bool:
        """Whether an engine has the present attempt in its batch."""
        return self.replica is not None

    def take(self, event: Event, replica: str, now: float) -> None:
        """The event that was due: the hub has checked its sequence number."""
        self.next_seq += 1
        self.heard_at = now
        kind = event[2]
        began = False
        if kind == DELTA:
            if self.request.echo and event[3] not in self._echoed:
                self._echoed.add(event[3])  # the prompt's own text and tokens
            else:
                if self.first_token_at is None:
                    self.first_token_at = now
                    began = True
                self.tokens.extend(event[5])
                if self.opening is not None and len(self.opening) < OPENING_CHARS:
                    self.opening += event[4]
            if event[7] is not None:
                self.finished_choices += 1
        elif kind == ACCEPTED:
            self.replica = replica
            self.unknown_to.clear()
            self.accepted_at = now
            self.prompt_tokens = sum(event[4])
        elif kind == DONE:
            self._note_usage(event[3])
        elif kind == ERROR:
            self._failed(from_wire(event[3]))
            return
        self.push(event)
        if began and self.on_first is not None:
            self.on_first()

    def trade(self, other: Flight) -> None:
        """Exchange the present attempts: each goes on with the other one's job."""
        for name in OF_AN_ATTEMPT:
            own = getattr(self, name)
            setattr(self, name, getattr(other, name))
            setattr(other, name, own)

    def push(self, event: Event) -> None:
        """Hand an event to the answering coroutine."""
        self.pending.append(event)
        if len(self.pending) > MERGE_BEYOND:
            self.pending = merged(self.pending)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: MmserveError) -> None:
        """End the request with an error."""
        if not self.over:
            self._failed(error)

    def ask_first(self, mover: Mover) -> None:
        """Ask this one before the request fails; of a failure that came while it was being sent, too."""
        self.mover = mover
        for event in self.pending:
            if event[2] == FAILED:
                self.pending.remove(event)
                self._failed(event[3])
                return

    def _failed(self, error: MmserveError) -> None:
        if self.committed or self.mover is None or not self.mover(error):
            self.push([self.job_id, -1, FAILED, error])

    async def next(self) -> list[Event]:
        """All events since the last call, at least one; the deadline ends the waiting (see Recovery)."""
        while not self.pending:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        found, self.pending = self.pending, []
        return found

    def _note_usage(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens = self.prompt_tokens or usage["prompt_tokens"]
        self.completion_tokens = usage["completion_tokens"]
        self.cached_tokens = usage.get("cached_tokens", 0)
        self.queued_s = usage.get("queued_s", 0.0)
        self.engine_s = usage.get("engine_s", 0.0)

    def continuation(self) -> GenerateRequest | None:
        """The request for the rest of a text whose beginning the client has; None where it could differ.

        A seeded sampler starts anew in another engine, penalties and bad words look at what is then the
        prompt, and structured output and a choice among many have state beyond the tokens.
        """
        sampling = self.request.sampling
        exact = (
            self.plan.choices == 1
            and not self.plan.want_logprobs
            and sampling.seed is None
            and not sampling.bad_words
            and sampling.presence_penalty == 0.0
            and sampling.frequency_penalty == 0.0
            and sampling.repetition_penalty == 1.0
            and not (sampling.json_schema or sampling.json_object or sampling.regex or sampling.choice)
            and not sampling.grammar
        )
        return msgspec.structs.replace(self.request, resume_token_ids=list(self.tokens)) if exact else None


def merged(events: list[Event]) -> list[Event]:
    """The same events with neighbouring deltas of one choice joined."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if (
            last is not None
            and last[2] == event[2] == DELTA
            and last[3] == event[3]
            and last[7] is None
            and (last[6] is None) == (event[6] is None)
        ):
            logprobs = None if last[6] is None else last[6] + event[6]
            found[-1] = [*event[:4], last[4] + event[4], last[5] + event[5], logprobs, *event[7:]]
        else:
            found.append(event)
    return found
