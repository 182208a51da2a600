"""What a job becomes on its way from the queue to the engine."""

from __future__ import annotations

import time
import zlib
from typing import Any

import msgspec
import pytest

from inference.engine.inhand import InHand, Pulled
from inference.engine.intake import Intake
from inference.engine.messages import Ended, Outcome, Start
from inference.engine.puller import AGED_AFTER_S
from inference.engine.retained import Retained
from inference.engine.rqkeys import stamp
from inference.protocol import JOB_GENERATE, GenerateRequest, Sampling
from tests.bench.instant_engine import InstantEngine


class Taken:
    """An intake, and what came out of it."""

    def __init__(self) -> None:
        self.started: list[Start] = []
        self.ended: list[Ended] = []
        self.emitted: list[Any] = []
        self.intake = Intake(
            engine=InstantEngine(),
            inhand=InHand(8),
            retained=Retained(),
            tasks=None,  # type: ignore[arg-type] nothing here is heavy
            start=self.started.append,
            emit=lambda channel, event: self.emitted.append(event),
            resend=lambda channel, events: None,
            end=self.ended.append,
        )

    def take(self, *, waited_s: float = 0.0, deadline_in_s: float = 60.0, priority: str = "low") -> None:
        request = GenerateRequest(
            request_id="r",
            reply_to="gateway",
            deadline=time.time() + deadline_in_s,
            sampling=Sampling(max_tokens=1),
            prompts=["x"],
            priority=priority,
        )
        data = msgspec.json.encode([JOB_GENERATE, None, [], {"request": request}])
        enqueued_at = stamp(time.time() - waited_s)
        self.intake.take(Pulled("job", f"echo.{priority}", "execution", zlib.compress(data), enqueued_at))


@pytest.mark.parametrize(("waited_s", "priority"), [(0.0, "low"), (AGED_AFTER_S + 1, "high")])
def test_a_job_that_aged_in_its_queue_does_not_wait_again_in_the_engine(
    waited_s: float, priority: str
) -> None:
    taken = Taken()
    taken.take(waited_s=waited_s)

    assert [start.request.priority for start in taken.started] == [priority]


def test_a_job_whose_deadline_has_passed_never_reaches_the_engine() -> None:
    taken = Taken()
    taken.take(deadline_in_s=-0.1)

    assert taken.started == []
    assert [ended.outcome for ended in taken.ended] == [Outcome.FAILED]
    assert taken.emitted[0][3]["code"] == "deadline_exceeded"
