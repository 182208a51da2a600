"""The children of `up` end in waves: whoever the others need ends last."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil

from mmserve.processes import Child, ProcessGroup

# Says that it runs, and when asked to end: that it was asked, and after the others are told, that it goes.
SAYS = """
import signal, sys, threading
name, journal, waits_for = sys.argv[1:]
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
def say(word):
    with open(journal, "a") as file:
        file.write(f"{name} {word}\\n")
say("runs")
asked.wait()
say("asked")
while waits_for and f"{waits_for} asked" not in open(journal).read():
    asked.clear()
    asked.wait(0.01)
say("ends")
"""


def test_all_of_a_wave_are_asked_at_once_and_the_next_wave_only_when_they_have_ended(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    group = ProcessGroup(tmp_path)

    def child(name: str, wave: int, waits_for: str = "") -> Child:
        return Child(name, [sys.executable, "-c", SAYS, name, str(journal), waits_for], wave=wave)

    # Both of a wave wait for each other: one after the other they would never end.
    for one in (child("store", 0), child("a", 1, "b"), child("b", 1, "a"), child("door", 2)):
        group.start(one)
    while not journal.exists() or journal.read_text().count("runs") < 4:
        assert all(one.process is not None and one.process.poll() is None for one in group.children)
    group.stop()

    said = journal.read_text().splitlines()[4:]
    assert said[:2] == ["door asked", "door ends"]
    assert set(said[2:4]) == {"a asked", "b asked"}
    assert said[-2:] == ["store asked", "store ends"]
    assert group.children == []


# Waits for work of its own when asked to end, as long as nobody asks again.
DRAINS = """
import signal, sys, threading
asked = threading.Semaphore(0)
signal.signal(signal.SIGTERM, lambda *_: asked.release())
open(sys.argv[1], "a").write("runs\\n")
for word in ("drains", "is cut"):
    while not asked.acquire(timeout=0.01):
        pass
    open(sys.argv[1], "a").write(word + "\\n")
"""


def test_in_a_hurry_a_child_is_asked_again_and_whoever_does_not_hear_is_killed(tmp_path: Path) -> None:
    journal, hurry = tmp_path / "journal", threading.Event()
    group = ProcessGroup(tmp_path)
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({!r}, 'a').write('runs\\n'); {}"
    )
    deaf = deaf.format(str(journal), "signal.pause() or signal.pause()")
    group.start(Child("drains", [sys.executable, "-c", DRAINS, str(journal)], grace_s=600.0))
    group.start(Child("deaf", [sys.executable, "-c", deaf], grace_s=600.0))
    until_said(journal, "runs", 2)
    stopping = threading.Thread(target=group.stop, args=[hurry])
    stopping.start()
    until_said(journal, "drains", 1)
    hurry.set()
    stopping.join(20)
    assert not stopping.is_alive()
    assert journal.read_text().splitlines() == ["runs", "runs", "drains", "is cut"]


def until_said(journal: Path, word: str, times: int) -> None:
    until = time.monotonic() + 20
    while not journal.exists() or journal.read_text().count(word) < times:
        assert time.monotonic() < until, f"nobody {word}"
        time.sleep(0.01)


# Does not hear, and has begun work in a process group of its own.
STARTS = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
work = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
open(sys.argv[1], "a").write(f"runs {work.pid}\\n")
work.wait()
"""


def test_whoever_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    group = ProcessGroup(tmp_path)
    group.start(Child("worker", [sys.executable, "-c", STARTS, str(journal)], grace_s=0.0))
    until_said(journal, "\n", 1)
    work = psutil.Process(int(journal.read_text().split()[1]))
    group.stop()
    assert psutil.wait_procs([work], timeout=20)[1] == []
