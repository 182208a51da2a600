"""Server processes of a benchmark: started with a log file, awaited, and stopped with all their children."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from inference.node.prctl import die_with_parent
from tests.bench.report import say

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 20.0
_POLL_S = 0.02
_LOG_LINES = 15


class ServerFailed(Exception):
    """A server ended or did not answer in time; the message has the end of its log."""


def free_port() -> int:
    """A TCP port on localhost that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(port: int, path: str) -> int:
    """The HTTP status of one GET; 0 while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def log_end(log: Path) -> str:
    """The last lines of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``ready`` says so; raises ServerFailed when the process ends or START_DEADLINE_S is over."""
    give_up = time.monotonic() + START_DEADLINE_S
    while not ready():
        if process.poll() is not None:
            raise ServerFailed(f"ended with {process.returncode}; {log} ends:\n{log_end(log)}")
        if time.monotonic() > give_up:
            raise ServerFailed(f"not ready after {START_DEADLINE_S:.0f} s; {log} ends:\n{log_end(log)}")
        time.sleep(_POLL_S)


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a process group of its own; the whole group is gone on leaving."""
    say(f"starting {' '.join(Path(part).name for part in command[:4])} …")
    parent = os.getpid()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A benchmark that is killed must not leave a platform behind.
            preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process group to end; what is left of it after STOP_DEADLINE_S is killed."""
    _signal_group(process.pid, signal.SIGINT)
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        say(f"process {process.pid} did not stop in {STOP_DEADLINE_S:.0f} s and is killed")
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        # Everyone in the group has ended already, which is what the caller wants.
        return
