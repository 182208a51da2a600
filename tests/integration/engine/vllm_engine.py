"""A real vLLM engine worker in a process of its own, as the node would start it but for the fork."""

from __future__ import annotations

import sys

import msgspec

from inference.engine import environment
from inference.protocol import ReplicaSpec


def main(spec: str) -> int:
    environment.prepare(on_cpu=True)
    from inference.engine.main import serve

    return serve(msgspec.json.decode(spec, type=ReplicaSpec))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
