"""What the worker needs of an engine: vLLM's adapter is one; benchmarks plug in one that answers at once."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from inference.protocol import GenerateRequest
from mmserve.errors import MmserveError

# What follows job id and sequence number in an event of inference.protocol: [kind, ...].
EventTail = list[Any]


class Prepared(NamedTuple):
    """A checked request: rendered, tokenized and within the context, ready to be added to the batch."""

    prompt_tokens: list[int]  # one count a prompt
    streams: int  # sequences that it will take in the batch
    body: Any  # the engine's own


class Usage(NamedTuple):
    """What an engine counts of a job."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Output(NamedTuple):
    """What one engine step made of one job: event tails in order; usage or error if that was the end."""

    job_id: str
    tails: list[EventTail]
    usage: Usage | None = None
    error: MmserveError | None = None


class TellStage(Protocol):
    """Says what an engine's load is at, and how far that is if it can be counted."""

    def __call__(
        self, stage: str, /, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None: ...


class Engine(Protocol):
    """One running batch. Only :meth:`prepare` may be called from another thread than the one that steps."""

    context_length: int
    max_streams: int
    # Rungs of inference.capacity.ladder on which it can rest with its process up; none on a CPU.
    rungs: tuple[str, ...]

    @property
    def form(self) -> str:
        """As in ReplicaBeat."""

    def is_light(self, request: GenerateRequest) -> bool:
        """Whether :meth:`prepare` takes well under a millisecond, so that it needs no thread of its own."""

    def prepare(self, request: GenerateRequest) -> Prepared:
        """Check, render and tokenize; raises an MmserveError that names the parameter."""

    def add(self, job_id: str, request: GenerateRequest, prepared: Prepared) -> None:
        """Put the job into the batch; raises an MmserveError if the engine refuses it."""

    def step(self) -> list[Output]:
        """One forward pass of the batch. Any exception means that the engine is dead."""

    def abort(self, job_id: str) -> Usage | None:
        """Take the job out of the batch; None if it is not in it."""

    def is_busy(self) -> bool:
        """Whether a step would do something."""

    def rest(self) -> None:
        """Nothing runs and nothing waits: time for what would hold others up, of a second at most."""

    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1."""

    def memory(self) -> dict[str, int]:
        """Bytes by part on each of its devices, as far as it can tell; cheap, called by another thread at each beat."""

    def sleep(self, rung: str) -> int:
        """Go down to one of its rungs, from serving or from one that leads there (``DEEPER`` of the ladder).

        Bytes that this step frees on each device. Nothing may be in the batch.
        """

    def wake(self) -> None:
        """Have weights and KV cache on the device again."""

    def fingerprint(self) -> str:
        """A digest of a sample of its weights: the same before a sleep and after it."""

    def canary(self) -> list[int]:
        """The one token that it makes, greedily, of a fixed prompt. Nothing may be in the batch."""

    def close(self) -> None:
        """Free what it holds."""
