"""Warm-up prompts, answered for nobody."""

from __future__ import annotations

import logging

import pytest

from inference.engine import warmup
from inference.engine.base import Prepared
from inference.engine.warmup import MAX_TOKENS, warm_up
from inference.protocol import GenerateRequest
from mmserve.errors import InvalidRequest
from tests.bench.instant_engine import InstantEngine


class Engine(InstantEngine):
    """Counts what it makes, and refuses one prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []
        self.tokens = 0

    def prepare(self, request: GenerateRequest) -> Prepared:
        if request.prompts == ["secret"]:
            raise InvalidRequest("secret is too long")
        self.prompts += request.prompts or []
        return super().prepare(request)

    def step(self) -> list:
        outputs = super().step()
        self.tokens += sum(len(output.tails) for output in outputs)
        return outputs


def test_each_prompt_is_answered_with_a_few_tokens_and_nothing_stays_in_the_batch() -> None:
    engine = Engine()
    assert warm_up(engine, ["a", "b"]) == 2
    assert engine.prompts == ["a", "b"]
    assert engine.tokens == 2 * MAX_TOKENS
    assert not engine.is_busy()


def test_what_is_refused_is_left_out_and_not_quoted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert warm_up(Engine(), ["secret", "b"]) == 1
    assert "prompt 0 is refused" in caplog.text
    assert "secret" not in caplog.text


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "LONGEST_S", 0.0)
    engine = Engine()
    assert warm_up(engine, ["a", "b"]) == 0
    assert not engine.is_busy()
