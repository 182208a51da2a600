"""Starts engine processes from the template, stops them, reaps them, and finds those that hang. Knows no rows."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from inference.engine import environment
from inference.node.prctl import become_subreaper
from inference.node.template import MAX_PACKET_BYTES, READY
from inference.protocol import CompileJob, OptionsCheck, ReplicaBeat, ReplicaSpec

log = logging.getLogger(__name__)

TEMPLATE_TIMEOUT_S = 180.0
FORK_TIMEOUT_S = 10.0
# A fork whose answer did not come may have been made all the same: its process is looked for, for so long.
LOOK_FOR_LOST_S = 60.0
LOG_TAIL_BYTES = 4000
MAX_WORDS_CHARS = 400
# ``package.SomeError: why``, as Python ends a traceback.
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Failed|Exit|Interrupt)\b")
RESTART_TEMPLATE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class ReplicaExit:
    """A replica whose process ended."""

    replica: str
    pid: int
    reason: str
    log_tail: str
    code: int  # exit code, or minus the signal's number


@dataclass(slots=True)
class _Engine:
    spec: ReplicaSpec
    pid: int
    kill_at: float | None = None
    killed_because: str = ""
    steps: int = -1
    progress_at: float = field(default_factory=time.monotonic)


class ReplicaSupervisor:
    """Owns the template process and the engines forked from it. Not thread-safe: one owner calls it."""

    def __init__(
        self,
        *,
        beat: Callable[[str], ReplicaBeat | None] | None = None,
        stuck_after_s: float = 120.0,
        silent_after_s: float = 10.0,
    ) -> None:
        """`beat` reads a replica's last heartbeat, for the progress watchdog; None switches the watchdog off.

        It raises ConnectionError when heartbeats cannot be read: nothing is concluded from that. An engine that has
        requests and makes no step for `stuck_after_s` hangs (one step may be a long prefill), and so does one whose
        heartbeat, which comes from a thread of its own, is missing for `silent_after_s`.
        """
        become_subreaper()
        self._beat = beat
        self._stuck_after_s = stuck_after_s
        self._silent_after_s = silent_after_s
        # Why there is no template: it ended before it was ready.
        self.template_failure = ""
        self._engines: dict[str, _Engine] = {}
        self._helpers: list[int] = []
        self._look_for_lost_until = 0.0
        self._template: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._ready = False
        self._restart_at = 0.0
        self._start_template()

    @property
    def template_ready(self) -> bool:
        """Whether the next engine starts from a warm template."""
        if not self._ready and self._channel is not None:
            self._wait_for_template(0.0)
        return self._ready

    @property
    def replicas(self) -> list[str]:
        """The replicas whose processes are there."""
        return list(self._engines)

    def pid_of(self, replica: str) -> int | None:
        """Its process, if it is there."""
        engine = self._engines.get(replica)
        return None if engine is None else engine.pid

    def start(self, spec: ReplicaSpec) -> int:
        """Fork one engine; its pid. Waits for a template that is still importing. OSError says why it failed."""
        pid = self._fork(spec)
        self._engines[spec.replica] = _Engine(spec, pid)
        return pid

    def check(self, question: OptionsCheck) -> None:
        """Have a process of the template's answer it. OSError says why none was started."""
        self._helpers.append(self._fork(question))

    def compile(self, job: CompileJob) -> int:
        """Have a process of the template's make a compiled form; its pid. OSError says why none was started."""
        pid = self._fork(job)
        self._helpers.append(pid)
        return pid

    def helps(self, pid: int) -> bool:
        """Whether this checker or builder is still at it."""
        return pid in self._helpers

    def kill_helper(self, pid: int) -> None:
        """With what it started, such as a compiler."""
        _signal_group(pid, signal.SIGKILL)

    def _fork(self, asked: ReplicaSpec | OptionsCheck | CompileJob) -> int:
        if self._channel is None:
            self._start_template()
        if not self._ready and not self._wait_for_template(TEMPLATE_TIMEOUT_S):
            raise OSError("the engine template did not get ready; see its log")
        assert self._channel is not None
        try:
            self._channel.send(msgspec.json.encode(asked))
            self._channel.settimeout(FORK_TIMEOUT_S)
            answer = self._channel.recv(MAX_PACKET_BYTES)
        except OSError:
            self._lose_template()
            raise
        if not answer:
            self._lose_template()
            raise OSError("the engine template died")
        return int(answer)

    def stop(self, replica: str, grace_s: float) -> None:
        """Ask an engine to drain (SIGTERM); it is killed after the grace."""
        engine = self._engines.get(replica)
        if engine is None or engine.kill_at is not None:
            return
        engine.kill_at = time.monotonic() + grace_s
        _signal(engine.pid, signal.SIGTERM)

    def kill(self, replica: str, why: str) -> None:
        """End an engine now; the next polls report it."""
        engine = self._engines.get(replica)
        if engine is not None:
            self._kill(engine, why)

    def poll(self) -> list[ReplicaExit]:
        """Reap what ended, kill what outlived its grace or hangs, keep a template at hand. Call it often."""
        now = time.monotonic()
        self._kill_late(now)
        for engine in self._engines.values():
            self._watch(engine, now)
        exits = [
            found for engine in list(self._engines.values()) if (found := self._reap(engine)) is not None
        ]
        self._helpers = [pid for pid in self._helpers if not _reaped(pid)]
        if now < self._look_for_lost_until:
            self._kill_lost()
        self._keep_template(now)
        return exits

    def close(self, grace_s: float = 30.0) -> None:
        """Stop every engine (drain first), then the template."""
        for replica in list(self._engines):
            self.stop(replica, grace_s)
        while self._engines:
            self._kill_late(time.monotonic())
            for engine in list(self._engines.values()):
                self._reap(engine)
            time.sleep(0.02)
        self._drop_template()

    def _kill_late(self, now: float) -> None:
        for engine in self._engines.values():
            if engine.kill_at is not None and now >= engine.kill_at:
                self._kill(engine, "it did not drain within its grace")

    def _reap(self, engine: _Engine) -> ReplicaExit | None:
        try:
            pid, status = os.waitpid(engine.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = engine.pid, 0
        if pid == 0:
            return None
        del self._engines[engine.spec.replica]
        # Its own children (an engine core of its own process) are in its process group.
        _signal_group(engine.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(status)
        tail = _tail(Path(engine.spec.log_path))
        return ReplicaExit(engine.spec.replica, engine.pid, _reason(code, engine, tail), tail, code)

    def _watch(self, engine: _Engine, now: float) -> None:
        """A process that is there is not yet one that works: requests in hand must make steps."""
        if self._beat is None or engine.killed_because:
            return
        try:
            beat = self._beat(engine.spec.replica)
        except ConnectionError:
            engine.progress_at = now
            return
        if beat is None:
            if engine.steps < 0:
                engine.progress_at = now  # it has not beaten yet: still starting
            elif now - engine.progress_at > self._silent_after_s:
                self._kill(engine, f"no heartbeat for {self._silent_after_s:.0f} s")
        elif beat.running + beat.waiting == 0 or beat.steps != engine.steps:
            engine.steps = beat.steps
            engine.progress_at = now
        elif now - engine.progress_at > self._stuck_after_s:
            self._kill(engine, f"no engine step for {self._stuck_after_s:.0f} s")

    def _kill(self, engine: _Engine, why: str) -> None:
        engine.killed_because = engine.killed_because or why
        _signal_group(engine.pid, signal.SIGKILL)
        _signal(engine.pid, signal.SIGKILL)

    def _start_template(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child_environment = dict(os.environ)
        preload = environment.preload()
        if preload:
            child_environment["LD_PRELOAD"] = preload
        self._template = subprocess.Popen(
            [sys.executable, "-m", "inference.node.template", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=child_environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._channel = ours
        self._ready = False

    def _wait_for_template(self, timeout_s: float) -> bool:
        assert self._channel is not None
        self._channel.settimeout(timeout_s)
        try:
            self._ready = self._channel.recv(MAX_PACKET_BYTES) == READY
        except (BlockingIOError, TimeoutError):
            return False
        except OSError as error:
            log.warning("engine template: %s", error)
        if self._ready:
            self.template_failure = ""
        else:
            self._drop_template()
            self.template_failure = "the engine template ended before it was ready; see the node's log"
            self._restart_at = time.monotonic() + RESTART_TEMPLATE_AFTER_S
        return self._ready

    def _keep_template(self, now: float) -> None:
        if self._template is not None and self._template.poll() is not None:
            log.error("the engine template ended with %s", self._template.returncode)
            if not self._ready:
                self.template_failure = f"the engine template ended with {self._template.returncode}"
            self._drop_template()
            self._restart_at = now + RESTART_TEMPLATE_AFTER_S
        if self._template is None and now >= self._restart_at:
            self._start_template()

    def _lose_template(self) -> None:
        """It did not answer: what it may have forked is nobody's, and must not keep memory."""
        self._drop_template()
        self._look_for_lost_until = time.monotonic() + LOOK_FOR_LOST_S

    def _kill_lost(self) -> None:
        known = {engine.pid for engine in self._engines.values()} | set(self._helpers)
        if self._template is not None:
            known.add(self._template.pid)
        for child in psutil.Process().children():
            if child.pid not in known:
                log.warning("pid %d is nobody's engine: killed", child.pid)
                _signal(child.pid, signal.SIGKILL)
                _reaped(child.pid)

    def _drop_template(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._template is not None:
            self._template.kill()
            self._template.wait()
            self._template = None
        self._ready = False


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log.debug("pid %d is gone already", pid)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        log.debug("process group %d is gone already", pid)


def _reason(code: int, engine: _Engine, tail: str) -> str:
    if engine.killed_because:
        return f"killed: {engine.killed_because}"
    if code == -signal.SIGKILL:
        return "ended by signal SIGKILL: somebody's, or the kernel was out of memory"
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    if code == 0:
        return "drained"
    return f"exited with code {code}: {_last_words(tail)}"


def _last_words(tail: str) -> str:
    """The last exception of a log in one line, else its last line."""
    lines = tail.strip().splitlines()
    named = [at for at, line in enumerate(lines) if EXCEPTION.match(line)]
    words = " ".join(" ".join(lines[named[-1] :]).split()) if named else (lines or ["its log is empty"])[-1]
    return words if len(words) <= MAX_WORDS_CHARS else words[:MAX_WORDS_CHARS] + " …"


def _tail(path: Path) -> str:
    """The log's last lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"(no log: {error.strerror})"
