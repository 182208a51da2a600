"""What `manage.py doctor` looks at: each finding is one fact that has to hold for this machine to serve."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis
from django.conf import settings
from django.core import checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from inference.models import Node
from inference.silence import all_silent, silent_s
from registry import revision

IMPORT_TIMEOUT_S = 120
MIN_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at."""

    what: str
    good: bool
    found: str


def examine(engine: bool = True) -> Iterator[Finding]:
    """Every finding, in the order in which a start would stumble; ``engine``: import vLLM too (slow)."""
    yield from _settings()
    looks: list[Callable[[], Finding]] = [_database, _migrations, _redis, _disk, _node]
    for look in [*looks, _vllm] if engine else looks:
        yield look()


def _settings() -> Iterator[Finding]:
    problems = checks.run_checks()
    for problem in problems:
        hint = f" {problem.hint}" if problem.hint else ""
        yield Finding(what="settings", good=not problem.is_serious(), found=f"{problem.msg}{hint}")
    if not problems:
        yield Finding(what="settings", good=True, found="all checks pass")


def _database() -> Finding:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return Finding(what="database", good=False, found=f"{connection.vendor} does not answer: {error}")
    return Finding(what="database", good=True, found=f"{connection.vendor} answers")


def _migrations() -> Finding:
    try:
        executor = MigrationExecutor(connection)
        due = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if due:
            return Finding(what="migrations", good=False, found=f"{len(due)} are due: run manage.py migrate")
        return Finding(what="migrations", good=True, found=f"applied; revision {revision.current()}")
    except DatabaseError as error:
        return Finding(what="migrations", good=False, found=f"cannot be read: {error}")


def _redis() -> Finding:
    client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)
    try:
        version = client.info("server")["redis_version"]
    except redis.RedisError as error:
        return Finding(what="redis", good=False, found=f"does not answer: {error}")
    finally:
        client.close()
    return Finding(what="redis", good=True, found=f"Redis {version} answers")


def _disk() -> Finding:
    folder = settings.DATA_DIR
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Finding(what="disk", good=free >= MIN_FREE_BYTES, found=f"{free / 2**30:.1f} GiB free at {folder}")


def _node() -> Finding:
    try:
        nodes = list(Node.objects.all())
    except DatabaseError as error:
        return Finding(what="engine template", good=False, found=f"nodes cannot be read: {error}")
    if (silence := all_silent(nodes)) is not None:
        return Finding(what="engine template", good=True, found=silence)
    now = timezone.now()
    up = [node for node in nodes if silent_s(node, now) is None]
    cold = [node.name for node in up if not node.template_ready]
    found = f"not warm on {', '.join(cold)}: loads are slow" if cold else f"warm on {len(up)} node(s)"
    if silent := [node.name for node in nodes if node not in up]:
        found += f"; not heard of: {', '.join(silent)}"
    return Finding(what="engine template", good=not cold, found=found)


def _vllm() -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import vllm; print(vllm.__version__)"],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(what="vllm", good=False, found=f"did not import within {IMPORT_TIMEOUT_S} s")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return Finding(
        what="vllm", good=done.returncode == 0, found=lines[-1] if lines else f"exit status {done.returncode}"
    )
