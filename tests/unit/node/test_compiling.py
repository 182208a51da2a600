"""Who compiles when, without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.engine.forms import MANIFEST, Shelf
from inference.node.compiling import BUILDER_BYTES, Compiling
from inference.protocol import CompileJob, EngineOptions

PLENTY = 1 << 60


class Builders:
    """A supervisor that starts nothing, and ends when it is told."""

    def __init__(self) -> None:
        self.started: list[CompileJob] = []
        self.running: set[int] = set()

    def compile(self, job: CompileJob) -> int:
        self.started.append(job)
        self.running.add(len(self.started))
        return len(self.started)

    def helps(self, pid: int) -> bool:
        return pid in self.running


@pytest.fixture
def builders() -> Builders:
    return Builders()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def compiling(tmp_path: Path, builders: Any, room: int = PLENTY) -> Compiling:
    return Compiling(tmp_path / "forms", tmp_path, builders, lambda: room)


def wish(tmp_path: Path, model: Path, key: str = "k") -> Shelf:
    folder = tmp_path / "forms"
    shelf = Shelf(folder, key)
    shelf.ask(CompileJob(key=key, folder=str(folder), model_path=str(model), options=EngineOptions()))
    return shelf


@pytest.fixture(autouse=True)
def much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = PLENTY

    monkeypatch.setattr("inference.node.compiling.psutil.virtual_memory", Memory)


def build(shelf: Shelf) -> None:
    made = shelf.form.with_name("made")
    made.mkdir()
    (made / MANIFEST).write_text("{}")
    shelf.keep(made)


def test_a_wish_is_built_once_and_forgotten(tmp_path: Path, model: Path, builders: Builders) -> None:
    shelf, node = wish(tmp_path, model), compiling(tmp_path, builders)
    node.tick(loading=False)
    node.tick(loading=False)
    assert [job.key for job in builders.started] == ["k"]

    build(shelf)
    builders.running.clear()
    node.tick(loading=False)
    node.tick(loading=False)

    assert len(builders.started) == 1
    assert not shelf.is_coming()
    assert not shelf.failure()


def test_two_are_never_built_at_once(tmp_path: Path, model: Path, builders: Builders) -> None:
    first, _second = wish(tmp_path, model, "a"), wish(tmp_path, model, "b")
    node = compiling(tmp_path, builders)
    for _ in range(3):
        node.tick(loading=False)
    assert [job.key for job in builders.started] == ["a"]
    build(first)
    builders.running.clear()
    for _ in range(3):
        node.tick(loading=False)
    assert [job.key for job in builders.started] == ["a", "b"]


def test_nothing_is_built_while_an_engine_loads(tmp_path: Path, model: Path, builders: Builders) -> None:
    shelf = wish(tmp_path, model)
    compiling(tmp_path, builders).tick(loading=True)
    assert not builders.started
    assert shelf.is_coming()


def test_a_wish_waits_for_memory(tmp_path: Path, model: Path, builders: Builders) -> None:
    (model / "model.safetensors").write_bytes(bytes(1000))
    shelf = wish(tmp_path, model)
    compiling(tmp_path, builders, room=BUILDER_BYTES + 1999).tick(loading=False)
    assert not builders.started
    assert shelf.is_coming()
    compiling(tmp_path, builders, room=BUILDER_BYTES + 2000).tick(loading=False)
    assert builders.started


def test_a_builder_that_dies_is_a_failure_with_its_last_words(
    tmp_path: Path, model: Path, builders: Builders
) -> None:
    shelf, node = wish(tmp_path, model), compiling(tmp_path, builders)
    node.tick(loading=False)
    Path(builders.started[0].log_path).write_text("no memory left")
    builders.running.clear()
    node.tick(loading=False)
    assert "no memory left" in shelf.failure()
    assert not shelf.is_coming()
    # And nobody asks again today.
    wish(tmp_path, model)
    assert not shelf.is_coming()


def test_a_failure_is_forgotten_after_a_day(tmp_path: Path, model: Path) -> None:
    shelf = wish(tmp_path, model)
    shelf.fail("it was so")
    [failed] = (tmp_path / "forms").glob("*.failed")
    os.utime(failed, (1, 1))
    assert wish(tmp_path, model).is_coming()


def test_a_wish_of_a_model_that_is_gone_is_dropped(tmp_path: Path, model: Path, builders: Builders) -> None:
    shelf = wish(tmp_path, model / "gone")
    compiling(tmp_path, builders).tick(loading=False)
    assert not builders.started
    assert not shelf.is_coming()


def test_what_is_no_wish_is_dropped_and_holds_up_no_other(
    tmp_path: Path, model: Path, builders: Builders
) -> None:
    wish(tmp_path, model)
    broken = tmp_path / "forms" / "x.wanted"
    broken.write_text("{nonsense")
    os.utime(broken, (1, 1))
    compiling(tmp_path, builders).tick(loading=False)
    assert not broken.exists()
    assert len(builders.started) == 1


def test_trouble_with_the_folder_never_ends_the_node(tmp_path: Path, builders: Builders) -> None:
    (tmp_path / "forms").mkdir()
    (tmp_path / "forms" / "x.wanted").mkdir()
    compiling(tmp_path, builders).tick(loading=False)
    assert not builders.started


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(("dead", "is_tried"), [(0, True), (1, True), (2, False)])
def test_a_form_that_ended_two_engines_is_not_tried_again(tmp_path: Path, dead: int, is_tried: bool) -> None:
    shelf = Shelf(tmp_path, "k")
    trying = tmp_path / "k.trying"
    trying.write_text("".join(f"{dead_pid()}\n" for _ in range(dead)))

    def attempt() -> None:
        with shelf.trying():
            assert str(os.getpid()) in trying.read_text()

    _raises_unless(is_tried, attempt)
    assert trying.exists() is not is_tried


def _raises_unless(fine: bool, attempt: Callable[[], None]) -> None:
    if fine:
        attempt()
    else:
        with pytest.raises(RuntimeError, match="2 engines died"):
            attempt()
