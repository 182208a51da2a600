"""Assignment of one request to 20 running experiments, beside hashing each of them anew."""

from __future__ import annotations

import hashlib
import time

from routing.core.assignment import ArmEntry, ExperimentEntry, Experiments, Subject, deal, exposed, mix
from tests.bench.report import Figure, emit
from tests.bench.setting import Setting

EXPERIMENTS = 20
# Short rounds, many of them: the best one was not interrupted.
REQUESTS = 500
ROUNDS = 300
UNITS = ("key", "user", "session", "request")


def running() -> list[ExperimentEntry]:
    """Twenty on one model id, of all kinds of units, filtered; each with 1% of the traffic, so most are looked at."""
    found = []
    for number in range(1, EXPERIMENTS + 1):
        arms = (
            ArmEntry(id=2 * number, name="control", served_id="model@1"),
            ArmEntry(id=2 * number + 1, name="new", served_id="model@2"),
        )
        found.append(
            ExperimentEntry(
                id=number,
                name=f"experiment-{number}",
                targets=("model",),
                unit=UNITS[number % len(UNITS)],
                salt=mix(number),
                phase=1,
                arms=arms,
                deal=deal((), exposed({arm.id: 50 for arm in arms}, 0.01)),
                filters={"endpoint": frozenset({"chat.completions"})},
            )
        )
    return found


def subjects() -> list[Subject]:
    """As many requests as a round has."""
    return [
        Subject(
            request=f"{number:024x}",
            key=f"key-{number % 50}",
            user=f"user-{number % 5000}",
            session=f"session-{number % 9000}",
            endpoint="chat.completions",
        )
        for number in range(REQUESTS)
    ]


def microseconds(assign: object, requests: list[Subject]) -> float:
    """The best round: what the work itself takes on a machine that others use as well."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for one in requests:
            assign(one)  # type: ignore[operator]
        best = min(best, time.perf_counter() - started)
    return best / len(requests) * 1e6


def hash_each(entries: list[ExperimentEntry]) -> object:
    """What is usual: a hash of salt and unit for every experiment."""

    def assign(subject: Subject) -> None:
        for entry in entries:
            text = f"{entry.salt}:{getattr(subject, entry.unit)}".encode()
            int(hashlib.sha256(text).hexdigest()[:15], 16) % 10_000

    return assign


def bench(_: Setting) -> None:
    """Ours against a hash an experiment."""
    entries = running()
    experiments = Experiments(entries)
    requests = subjects()
    ours = microseconds(lambda one: experiments.assign("model", one), requests)
    theirs = microseconds(hash_each(entries), requests)
    assigned = sum(1 for one in requests if experiments.assign("model", one) is not None)
    note = f"20 experiments with filters, 4 kinds of units, {assigned / len(requests):.0%} assigned; best of {ROUNDS}"
    emit(
        Figure(
            name="assignment",
            value=ours,
            unit="us",
            peer="SHA-256 an experiment",
            peer_value=theirs,
            note=note,
        )
    )
