"""`manage.py up` in an environment that is wrong: one line that names the variable, and nothing is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MMSERVE_PORT", "abc"),
        ("MMSERVE_DRAIN_S", "x"),
        ("MMSERVE_LOG_LEVEL", "loud"),
        ("MMSERVE_DATA_DIR", "/proc/nope"),
        ("MMSERVE_HOST", "192.0.2.1"),  # RFC 5737: nobody's
        ("DATABASE_URL", "nonsense"),
        ("DATABASE_URL", "postgres://127.0.0.1:1/x"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
    ],
)
def test_a_wrong_value_is_named_in_the_last_line_without_a_traceback(
    name: str, value: str, tmp_path: Path
) -> None:
    environment = {
        key: kept
        for key, kept in os.environ.items()
        if not key.startswith("MMSERVE_") and key not in ("REDIS_URL", "DATABASE_URL")
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment |= {"MMSERVE_DATA_DIR": str(tmp_path), "MMSERVE_PORT": port, name: value}
    command = [sys.executable, str(ROOT / "manage.py"), "up", "--no-demo"]

    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert name in ended.stderr.splitlines()[-1]
