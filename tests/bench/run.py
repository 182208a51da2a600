"""``make bench``: every benchmark, as JSON lines on stdout and progress on stderr.

A line is ``{"name","value","unit","peer","peer_value","ratio"}``, and ``note`` where something has to be
said. ``ratio`` is always ours over the peer's: for a rate more is better, for a time (``ms``, ``s``) less. A
benchmark that fails gives a line without a value that says why, and the exit code 1; its logs are kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import (
    bench_affinity,
    bench_assignment,
    bench_burst,
    bench_fetch,
    bench_gateway,
    bench_listing,
    bench_memory,
    bench_placement,
    bench_routing,
    bench_start,
    bench_stream,
    bench_swap,
    bench_whole,
    bench_worker,
    swap_sim,
)
from tests.bench.load import LoadFailed
from tests.bench.peers import PeerMissing
from tests.bench.processes import ServerFailed
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

BENCHES: dict[str, Callable[[Setting], None]] = {
    "stream": bench_stream.bench,
    "start": bench_start.bench,
    "swap": bench_swap.bench,
    "placement": bench_placement.bench,
    "affinity": bench_affinity.bench,
    "assignment": bench_assignment.bench,
    "routing": bench_routing.bench,
    "gateway": bench_gateway.bench,
    "whole": bench_whole.bench,
    "burst": bench_burst.bench,
    "memory": bench_memory.bench,
    "fetch": bench_fetch.bench,
    "listing": bench_listing.bench,
    "swap_sim": swap_sim.bench,
    "worker": lambda _: bench_worker.main(),
}


def main() -> int:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.run", description=__doc__)
    parser.add_argument("--only", choices=BENCHES, action="append", help="run this one; may be given again")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, for a first look")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mmserve-bench-"))
    failed = []
    # Ended by a time limit, the servers are stopped in order as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in arguments.only or BENCHES:
        # Figures taken beside other work are worth little: let the reader see it.
        say(f"bench {name}, load average {os.getloadavg()[0]:.1f}")
        try:
            BENCHES[name](Setting(work=work, quick=arguments.quick))
        except (ServerFailed, LoadFailed, PeerMissing) as problem:
            emit(Figure(name=name, value=None, unit="", note=f"failed: {problem}"))
            failed.append(name)
    if failed:
        say(f"{', '.join(failed)} failed; the logs are in {work}")
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
