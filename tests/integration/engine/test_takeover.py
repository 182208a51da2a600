"""When an engine goes on compiled and when it does not, with forms that do as they are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference.engine.forms import MANIFEST, Shelf
from inference.protocol import COMPILED, COMPILING, EAGER, EngineOptions

# Importing the adapter imports vLLM.
pytestmark = pytest.mark.vllm

Forward = Callable[..., Any]


class Machine:
    """An engine and its model: every step runs the module over the tokens of all requests."""

    def __init__(self) -> None:
        import torch

        class Doubling(torch.nn.Module):
            def forward(self, tokens: Any) -> Any:
                return 2.0 * tokens

        self.tokens = torch.tensor
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 5000))
        self.module = Doubling()
        self.waiting: list[list[int]] = []

    def apply_model(self, ask: Forward) -> list[Any]:
        return [ask(self.module)]

    def add_request(self, _request_id: str, prompt: Any, _params: Any) -> None:
        self.waiting += [[510], prompt["prompt_token_ids"]]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> None:
        self.run(self.waiting.pop())

    def run(self, tokens: list[int]) -> list[float]:
        """What somebody's request would get."""
        made: list[float] = self.module(self.tokens(tokens).float()[:, None])[:, 0].tolist()
        return made


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    found = Shelf(tmp_path, "k")
    found.form.mkdir()
    (found.form / MANIFEST).write_text("{}")
    return found


@pytest.fixture
def takeover(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Forward], Any]:
    """One whose form computes what it is given."""
    from inference.engine import takeover as module

    def make(forward: Forward) -> Any:
        monkeypatch.setattr(module, "form_key", lambda *_: "k")
        monkeypatch.setattr(module, "read_form", lambda *_: (machine.module, forward))
        engine: Any = machine
        return module.Takeover(engine, str(tmp_path), "/model", EngineOptions())

    return make


def test_without_a_form_it_asks_for_one_and_waits(
    takeover: Callable[[Forward], Any], machine: Machine, tmp_path: Path
) -> None:
    found = takeover(lambda tokens: 2.0 * tokens)
    found.advance()
    assert found.form == COMPILING
    assert Shelf(tmp_path, "k").is_coming()
    assert machine.run([1, 2]) == [2.0, 4.0]


def test_a_form_that_computes_the_same_is_taken(
    takeover: Callable[[Forward], Any], machine: Machine, shelf: Shelf
) -> None:
    seen: list[Any] = []

    def forward(tokens: Any) -> Any:
        seen.append(tokens)
        return tokens + tokens

    found = takeover(forward)
    found.advance()
    assert found.form == COMPILED
    seen.clear()
    assert machine.run([1, 2]) == [2.0, 4.0]
    assert len(seen) == 1


def _raises(_tokens: Any) -> Any:
    raise ValueError("no such shape")


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda tokens: 2.01 * tokens, "something else"),
        (lambda tokens: float("nan") * tokens, "something else"),
        (lambda tokens: 2.0 * tokens[:1], "other shapes"),
        (_raises, "no such shape"),
    ],
)
def test_a_form_that_does_not_compute_the_same_is_refused_and_thrown_away(
    takeover: Callable[[Forward], Any], machine: Machine, shelf: Shelf, forward: Forward, why: str
) -> None:
    found = takeover(forward)
    found.advance()
    assert found.form == EAGER
    assert why in shelf.failure()
    assert not shelf.has_form()
    assert machine.run([1, 2]) == [2.0, 4.0]
    found.advance()
    assert not shelf.is_coming()


def test_a_form_that_fails_in_a_step_costs_nobody_an_answer(
    takeover: Callable[[Forward], Any], machine: Machine, shelf: Shelf
) -> None:
    def forward(tokens: Any) -> Any:
        return _raises(tokens) if len(tokens) == 3 else 2.0 * tokens

    found = takeover(forward)
    found.advance()
    assert found.form == COMPILED
    assert machine.run([1, 2, 3]) == [2.0, 4.0, 6.0]
    assert found.form == EAGER
    assert "in a step" in shelf.failure()
    assert machine.run([1, 2]) == [2.0, 4.0]
