"""The peers that we measure against, in a virtualenv of their own: ``.venv-peers`` at the repository's root.

``python -m tests.bench.peers`` installs them. One that cannot be installed is reported with pip's own words,
and the benchmarks that need it print a line without a ratio.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from tests.bench.processes import ROOT
from tests.bench.report import say

HOME = ROOT / ".venv-peers"
PYTHON = HOME / "bin" / "python"

LITELLM = "litellm[proxy]==1.106.0"
VLLM_ROUTER = "vllm-router==0.1.17"
PIP_DEADLINE_S = 900


class PeerMissing(Exception):
    """A peer cannot be installed or started here; the message says why."""


def distribution(requirement: str) -> str:
    """Name and version without extras: ``litellm 1.109.1``."""
    name, _, version = requirement.partition("==")
    return f"{name.partition('[')[0]} {version}"


def installed(requirement: str) -> bool:
    """Whether ``.venv-peers`` holds exactly this version."""
    if not PYTHON.exists():
        return False
    name, version = distribution(requirement).split()
    probe = f"import sys, importlib.metadata as m; sys.exit(m.version({name!r}) != {version!r})"
    return subprocess.run([PYTHON, "-c", probe], capture_output=True, check=False).returncode == 0


def need(requirement: str) -> None:
    """Install a peer if it is missing; raises PeerMissing with pip's last line."""
    if installed(requirement):
        return
    say(f"installing {requirement} into {HOME.name}")
    if not PYTHON.exists():
        venv.create(HOME, with_pip=True)
    command: list[str | Path] = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries",
        "2",
        "--timeout",
        "20",
        requirement,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_DEADLINE_S)
    except subprocess.TimeoutExpired as late:
        raise PeerMissing(f"pip install {requirement} took longer than {PIP_DEADLINE_S} s") from late
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerMissing(f"pip install {requirement} failed: {errors[-1] if errors else 'see pip'}")


def main() -> int:
    """Install every peer; exit code 1 if one is missing."""
    missing = 0
    for requirement in (LITELLM, VLLM_ROUTER):
        try:
            need(requirement)
            say(f"{distribution(requirement)} is installed")
        except PeerMissing as problem:
            say(str(problem))
            missing = 1
    return missing


if __name__ == "__main__":
    sys.exit(main())
