"""mmserve with an engine that answers at once: its real Redis, gateway and engine worker, without a node."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe

from mmserve.embedded_redis import command as redis_command
from tests.bench.completion import first_token_at
from tests.bench.instant_rows import MODEL
from tests.bench.load import Target
from tests.bench.platform import environment
from tests.bench.processes import ROOT, ServerFailed, free_port, running, status_of, wait_until


@dataclass(frozen=True, slots=True)
class InstantPlatform:
    """Where it listens, and the gateway's process."""

    target: Target
    gateway_pid: int
    asks_for: str = MODEL  # what a client names
    note: str = ""  # what is on


@contextmanager
def instant_platform(
    work: Path,
    many: tuple[int, int] | None = None,
    whole: bool | None = None,
    *,
    queue_bound: int | None = None,
    step_s: float = 0.0,
) -> Iterator[InstantPlatform]:
    """Key, routing table, admission, queue and reply channel are all the real ones.

    ``many``: models, and versions of each, that stand by. ``whole``: True for a route, an experiment, prices, budgets,
    decisions that are kept, and the roll-up; False for none of it, not even a kept decision. ``step_s``: what a step
    of the engine takes.
    """
    port = free_port()
    data = Path(tempfile.mkdtemp(prefix="instant-", dir=work))
    socket = data / "redis.sock"
    env = environment(data, port) | {"REDIS_URL": f"unix://{socket}", "DJANGO_SECRET_KEY": token_urlsafe(64)}
    if whole is False:
        env["MMSERVE_DECISIONS_PER_S"] = "0"
    redis_log, gateway_log, engine_log = (data / f"{name}.log" for name in ("redis", "gateway", "engine"))
    with running(redis_command(socket, data), redis_log) as redis:
        wait_until(socket.exists, redis, redis_log)
        _python(["manage.py", "migrate", "--verbosity", "0"], env)
        asked = (["whole"] if whole else []) + ([str(queue_bound)] if queue_bound is not None else [])
        rows = json.loads(_python(["-m", "tests.bench.instant_rows", *asked], env).splitlines()[-1])
        if many is not None:
            _python(["-m", "tests.bench.many_rows", *map(str, many)], env)
        target = Target(url=f"http://127.0.0.1:{port}", model=MODEL, api_key=rows["api_key"])
        engine = [sys.executable, "-m", "tests.bench.instant_worker", rows["deployment"], env["REDIS_URL"]]
        engine.append(str(step_s))
        daphne: list[str | Path] = [
            Path(sys.executable).with_name("daphne"),
            "-b",
            "127.0.0.1",
            "-p",
            str(port),
        ]
        daphne += ["--no-server-name", "-v", "0", "mmserve.asgi:application"]
        with running(daphne, gateway_log, env) as gateway, running(engine, engine_log, env):
            wait_until(lambda: status_of(port, "/readyz") == 200, gateway, gateway_log)
            first_token_at(target, gateway)
            rollup = [sys.executable, "-m", "tests.bench.instant_rollup"]
            with running(rollup, data / "rollup.log", env) if whole else nullcontext():
                yield InstantPlatform(target, gateway.pid, rows["asks_for"], rows["note"])


def _python(arguments: list[str], env: dict[str, str]) -> str:
    """Run Python to its end with the platform's environment; its stdout."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServerFailed(f"python {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout
