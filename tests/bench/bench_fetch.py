"""Fetch of 2 GiB over loopback S3, verified: ours beside boto3's download_file and a SHA-256 pass."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.processes import ROOT, ServerFailed, free_port, running, wait_until
from tests.bench.report import Figure, emit, say
from tests.bench.setting import Setting

SIZE, QUICK_SIZE = 2 * 2**30, 256 * 2**20
ROUNDS = 3
BLOCK = 2**24
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}


def bench(setting: Setting) -> None:
    """Turn by turn, so that a slow minute of the machine hits both."""
    size = QUICK_SIZE if setting.quick else SIZE
    source = setting.work / "object"
    sha256 = _write(source, size)
    port = free_port()
    server = [sys.executable, "-m", "tests.bench.object_server", str(port), str(source)]
    log = setting.work / "object_server.log"
    with running(server, log, dict(os.environ)) as process:
        wait_until(lambda: _listens(port), process, log)
        measured: dict[str, list[dict[str, float]]] = {"ours": [], "boto3": []}
        for number in range(ROUNDS):
            for way, results in measured.items():
                results.append(_download(way, port, setting.work / "into", sha256))
                say(
                    f"  round {number + 1}, {way}: {results[-1]['seconds']:.2f} s, {results[-1]['peak_mib']:.0f} MiB"
                )
                shutil.rmtree(setting.work / "into")
        _speed(size, measured)
        _resume(setting, port, size, sha256)


def _speed(size: int, measured: dict[str, list[dict[str, float]]]) -> None:
    def median(way: str, name: str) -> float:
        return statistics.median(result[name] for result in measured[way])

    rates = {way: size / 2**20 / median(way, "seconds") for way in measured}
    note = f"{size / 2**30:g} GiB, median of {ROUNDS}; ours hashes on the way, boto3 in a second pass"
    emit(
        Figure(
            name="fetch_rate",
            value=rates["ours"],
            unit="MiB/s",
            peer="boto3 download_file + sha256",
            peer_value=rates["boto3"],
            note=note,
        )
    )
    emit(
        Figure(
            name="fetch_peak_memory",
            value=median("ours", "peak_mib"),
            unit="MiB",
            peer="boto3 download_file + sha256",
            peer_value=median("boto3", "peak_mib"),
        )
    )


def _resume(setting: Setting, port: int, size: int, sha256: str) -> None:
    into = setting.work / "resumed"
    _download("ours", port, into, sha256, stop_after=size // 2)
    resumed = _download("ours", port, into, sha256)
    note = f"killed at about half of {size} bytes; a part that was under way is fetched again"
    emit(Figure(name="fetch_resumed_bytes", value=resumed["moved_bytes"], unit="bytes", note=note))


def _download(way: str, port: int, into: Path, sha256: str, stop_after: int = 0) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "tests.bench.download",
        way,
        f"http://127.0.0.1:{port}",
        str(into),
        sha256,
    ]
    done = subprocess.run(
        [*command, str(stop_after)],
        cwd=ROOT,
        env={**os.environ, **KEYS, "DJANGO_SETTINGS_MODULE": "mmserve.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    if stop_after and done.returncode == 9:
        return {}
    if done.returncode:
        raise ServerFailed(f"{way} failed: {done.stderr[-1000:]}")
    return json.loads(done.stdout)


def _write(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with file.open("wb") as writer:
        for _ in range(0, size, BLOCK):
            block = os.urandom(min(BLOCK, size))
            writer.write(block)
            digest.update(block)
    return digest.hexdigest()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
