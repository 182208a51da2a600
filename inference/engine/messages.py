"""What a worker's engine thread and I/O thread say to each other. Each owns its state; only these cross."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from inference.engine.base import Prepared, Usage
from inference.protocol import GenerateRequest

Event = list[Any]


class Outcome(StrEnum):
    """How a job left this worker; the first three are RQ's words."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"  # the client went away, or its gateway did
    GIVEN_BACK = "given_back"  # to the head of its queue, for another replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """To the engine: add this job to the batch."""

    job_id: str
    request: GenerateRequest
    prepared: Prepared
    enqueued_at: float  # unix time


@dataclass(frozen=True, slots=True)
class Abort:
    """To the engine: nobody waits for this job any more."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """To the engine: take nothing new, finish what runs within this time, then leave."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """To the engine: take nothing new, finish what runs within this time, then rest on this rung."""

    rung: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Wake:
    """To the engine: serve again."""


@dataclass(frozen=True, slots=True)
class IoLost:
    """To the engine: the I/O thread died of a fault of its own; without it this worker is useless."""

    error: BaseException


Command = Start | Abort | Drain | Sleep | Wake | IoLost


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """To the I/O thread: book this job as over."""

    job_id: str
    outcome: Outcome
    worked_s: float = 0.0
    usage: Usage | None = None
    error: str | None = None  # never holds a prompt or an answer


@dataclass(slots=True)
class Report:
    """To the I/O thread: all that one turn of the engine loop brought."""

    events: dict[str, list[Event]] = field(default_factory=dict)  # by reply channel
    ended: list[Ended] = field(default_factory=list)
    stepped: bool = False
    tokens: int = 0
    ttfts_s: list[float] = field(default_factory=list)
    tpots_s: list[float] = field(default_factory=list)
    running_streams: int = 0
    batch_streams: int = 0  # streams that this step brought on
    kv_usage: float = 0.0

    def add(self, channel: str, event: Event) -> None:
        self.events.setdefault(channel, []).append(event)

    def __bool__(self) -> bool:
        return bool(self.stepped or self.events or self.ended)
