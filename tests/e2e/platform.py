"""The whole platform as an operator starts it, and the means to break it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
# States of replicas that have memory reserved, as SQL.
ALIVE = "('pending', 'loading', 'ready', 'draining')"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll until the condition is true; its value."""
    until = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.05)


def living(parent: int, marker: str) -> list[psutil.Process]:
    """Living processes below this one whose command line holds the marker."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is none, either
            if marker in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


class SecondNode:
    """A node beside the platform's own."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process

    def engines(self) -> list[psutil.Process]:
        """Its living engine processes."""
        if self.process.poll() is not None:
            return []
        return living(self.process.pid, "mmserve engine")

    def kill(self) -> None:
        """Gone, whatever it was doing; its engines with it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class Platform:
    """`manage.py up` in a data directory of its own."""

    def __init__(self, data_dir: Path, *, demo: bool, **environment: str) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        # The test session's own settings must not leak into the platform under test.
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("MMSERVE_")
            and key not in ("REDIS_URL", "DATABASE_URL", "DJANGO_SECRET_KEY")
        }
        self.environment = {
            **inherited,
            "MMSERVE_DATA_DIR": str(data_dir),
            "MMSERVE_PORT": str(self.port),
            "MMSERVE_CACHE_DIR": str(CACHE),
            "MMSERVE_COMPILED_DIR": "",
            **environment,
        }
        self.output = (data_dir.parent / f"{data_dir.name}.log").open("w+")
        command = [sys.executable, str(ROOT / "manage.py"), "up", *([] if demo else ["--no-demo"])]
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_until(self._answers, 90, "the gateway answers")
        self.credentials: dict[str, str] = json.loads((data_dir / "credentials.json").read_text())
        self.url = self.credentials["url"]
        self.key = self.credentials["api_key"]
        self.http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60
        )

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.printed()
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def printed(self) -> str:
        """What `up` has said so far."""
        return Path(self.output.name).read_text()

    def status(self, model: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/models/{model}").json())

    def wait_ready(self, model: str, timeout_s: float = 150) -> None:
        """Until the gateway itself would serve the model."""

        def ready() -> bool:
            assert f"{model}: failed" not in (said := self.printed()), said
            try:
                answer = self.http.post("/v1/routing/explain", json={"model": model, "prompt": "x"}).json()
            except httpx.TransportError:
                return False  # the gateway itself is coming back
            # A model that must be loaded first would be chosen, too.
            return any(
                one["id"] == answer["chosen"] and one["scores"]["ready"]
                for one in answer.get("candidates", [])
            )

        wait_until(ready, timeout_s, f"{model} is ready")

    def processes(self, marker: str) -> list[psutil.Process]:
        """Living processes of this platform whose command line holds the marker."""
        return living(self.process.pid, marker)

    def engine(self, model: str) -> psutil.Process:
        """The model's engine process."""
        return wait_until(lambda: self.processes(f"mmserve engine {model}@"), 60, f"engine of {model}")[0]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the platform's database says."""
        if url := self.environment.get("DATABASE_URL"):
            with psycopg.connect(url) as postgres:
                return postgres.execute(query).fetchall()
        with closing(sqlite3.connect(self.data_dir / "mmserve.sqlite3", timeout=20)) as sqlite:
            return sqlite.execute(query).fetchall()

    def books_balance(self, *others: SecondNode) -> None:
        """Memory is reserved for the engines that live, for no others, and for each once."""

        def booked() -> list[int]:
            rows = self.rows(f"SELECT coalesce(pid, 0) FROM inference_replica WHERE state IN {ALIVE}")
            return sorted(pid for (pid,) in rows)

        def living() -> list[int]:
            found = self.processes("mmserve engine")
            for node in others:
                found += node.engines()
            return sorted(process.pid for process in found)

        try:
            wait_until(lambda: booked() == living(), 30, "memory is reserved for the engines that live")
        except AssertionError as error:
            raise AssertionError(f"memory is reserved for {booked()}, and {living()} live") from error

    def start_node(self, name: str, **environment: str) -> SecondNode:
        """One more `manage.py node`, as on another machine."""
        log = (self.data_dir.parent / f"node-{name}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "node", "--name", name],
            env={**self.environment, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        return SecondNode(name, process)

    def stream(self, body: dict[str, Any], path: str = "/v1/completions") -> Any:
        return self.http.stream("POST", path, json={**body, "stream": True})

    def interrupt(self) -> None:
        """Ctrl-C as a terminal sends it: to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(90)
        self.output.close()
        return code


def sse(lines: Any) -> Any:
    """The JSON values of an SSE body, until [DONE]; "[DONE]" itself is the last."""
    for line in lines:
        if line.startswith("data: "):
            payload = line.removeprefix("data: ")
            if payload == "[DONE]":
                yield payload
                return
            yield json.loads(payload)
