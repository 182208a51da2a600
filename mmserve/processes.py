"""The child processes of `up`: started together, watched, started again when they die, stopped in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from inference.node.prctl import die_with_parent

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STEADY_AFTER_S = 60.0
HURRIED_S = 4.0
# Two signals at once may be heard as one.
APART_S = 0.5
LOOK_S = 0.1


@dataclass
class Child:
    """One process of the platform."""

    name: str
    command: Sequence[str]
    grace_s: float = 10.0
    wave: int = 0  # a stop asks those of the highest wave first, all of a wave at once
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    retry_at: float = 0.0


@dataclass
class ProcessGroup:
    """Owns the children; `poll` is to be called about once a second."""

    log_dir: Path
    children: list[Child] = field(default_factory=list)

    def start(self, child: Child) -> None:
        """Start a child; its output goes to `<log_dir>/<name>.log`."""
        self.log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        parent = os.getpid()
        with (self.log_dir / f"{child.name}.log").open("ab") as output:
            child.process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches us alone; we stop them in order.
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),
            )
        child.started_at = time.monotonic()
        if child not in self.children:
            self.children.append(child)

    def poll(self) -> None:
        """Start again what died, later each time it dies at once."""
        now = time.monotonic()
        for child in self.children:
            assert child.process is not None
            code = child.process.poll()
            if code is None:
                continue
            if not child.retry_at:
                if now - child.started_at > STEADY_AFTER_S:
                    child.failures = 0
                child.failures += 1
                wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (child.failures - 1))
                child.retry_at = now + wait
                log.error(
                    "%s ended with %s (see %s.log); again in %.1f s", child.name, code, child.name, wait
                )
            elif now >= child.retry_at:
                child.retry_at = 0.0
                self.start(child)

    def stop(self, hurry: threading.Event | None = None) -> None:
        """SIGTERM wave by wave; SIGKILL after each one's grace, which is HURRIED_S once ``hurry`` is set."""
        hurry = hurry or threading.Event()
        for wave in sorted({child.wave for child in self.children}, reverse=True):
            leaving = [child for child in self.children if child.wave == wave and _lives(child)]
            asked_at = time.monotonic()
            for child in leaving:
                assert child.process is not None
                child.process.terminate()
            for child in leaving:
                _wait(child, asked_at, hurry)
        self.children.clear()


def _lives(child: Child) -> bool:
    return child.process is not None and child.process.poll() is None


def _wait(child: Child, asked_at: float, hurry: threading.Event) -> None:
    assert child.process is not None
    until, hurried = asked_at + child.grace_s, False
    while _lives(child):
        now = time.monotonic()
        if hurry.is_set() and not hurried and now - asked_at >= APART_S:
            hurried, until = True, min(until, now + HURRIED_S)
            child.process.terminate()
        if now >= until:
            log.warning("%s did not stop within %.0f s: killed", child.name, now - asked_at)
            _kill(child.process)
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(min(LOOK_S, until - now))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it started, in whatever process group that is: rq's workers give each job one of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for one in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()
