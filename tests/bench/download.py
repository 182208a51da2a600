"""One download by ours or by boto3, in a process of its own, so that its peak memory is its own.

``python -m tests.bench.download ours|boto3 ENDPOINT FOLDER SHA256 [STOP_AFTER_BYTES]`` prints
``{"seconds", "peak_mib", "moved_bytes"}`` as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

BUCKET, KEY, NAME = "models", "llama/model.safetensors", "model.safetensors"


def ours(endpoint: str, folder: Path, sha256: str, stop_after: int) -> int:
    """Ranged parts, hashed on the way."""
    from registry.fetch import Fetcher
    from registry.s3 import client_for, remote_file

    def report(done: int, total: int | None, files: Any = ()) -> None:
        if stop_after and done >= stop_after:
            os._exit(9)

    fetcher = Fetcher(folder, report)
    fetcher.fetch([remote_file(client_for(endpoint), BUCKET, KEY, NAME, sha256)])
    return fetcher.moved_bytes


def boto3_way(endpoint: str, folder: Path, sha256: str, stop_after: int) -> int:
    """``download_file`` as it ships, then a pass of SHA-256 over the file."""
    import boto3

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / NAME
    boto3.client("s3", endpoint_url=endpoint).download_file(BUCKET, KEY, str(file))
    with file.open("rb") as reader:
        found = hashlib.file_digest(reader, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"the digest is {found}")
    return file.stat().st_size


def main() -> None:
    """Measure one."""
    way, endpoint, folder, sha256 = sys.argv[1:5]
    stop_after = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    # Both have their libraries loaded before the clock starts.
    import boto3  # noqa: F401

    import registry.s3  # noqa: F401

    started = time.perf_counter()
    moved = {"ours": ours, "boto3": boto3_way}[way](endpoint, Path(folder), sha256, stop_after)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "moved_bytes": moved}))


if __name__ == "__main__":
    main()
