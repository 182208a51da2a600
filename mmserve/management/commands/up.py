"""`manage.py up`: the whole platform on this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import redis
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError
from rich.console import Console

from mmserve import embedded_redis
from mmserve.first_start import Credentials, ensure_credentials, ensure_secret_key
from mmserve.processes import Child, ProcessGroup

START_TIMEOUT_S = 60.0
# For a server of the operator's own, which may start beside this.
SERVER_TIMEOUT_S = 10.0
# What the printed curl asks: a model with a chat template, and one that only completes.
CHAT = ("/v1/chat/completions", '"messages": [{"role": "user", "content": "What is the capital of France?"}]')
COMPLETION = ("/v1/completions", '"prompt": "The capital of France is"')
# What gateway and node may take beyond MMSERVE_DRAIN_S: to say last words, and to write them down.
GRACE_S = 15.0


class Command(BaseCommand):
    help = "Start everything on this machine: stores, gateway, node, controller, ops worker. Ctrl-C stops it all."
    # The first start makes the secret that the checks ask for.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--no-demo", action="store_true", help="do not register the two demo models")

    def handle(self, *args: Any, **options: Any) -> None:
        # A digit within a model's name is no number to colour.
        self.console = Console(stderr=True, highlight=False)
        self.stopping = threading.Event()
        self.hurry = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: (self.hurry if self.stopping.is_set() else self.stopping).set())
        self._prepare_data_dir()
        self._refuse_taken_port()
        group = ProcessGroup(Path(settings.DATA_DIR) / "logs")
        try:
            self._start(group, demo=not options["no_demo"])
            while not self.stopping.wait(1.0):
                group.poll()
        finally:
            self.console.print(
                f"stopping: requests in flight have {settings.DRAIN_S:g} s to finish; Ctrl-C again ends them at once"
            )
            group.stop(self.hurry)

    def _prepare_data_dir(self) -> None:
        try:
            ensure_secret_key()
            self.check(fail_level=40)
            self._lock_data_dir()
        except OSError as error:
            raise CommandError(
                f"MMSERVE_DATA_DIR is {settings.DATA_DIR}, which cannot be used ({error}); "
                "set it to a folder that this user may write"
            ) from error

    def _lock_data_dir(self) -> None:
        """Two platforms over one data directory would take each other's Redis away."""
        self.lock = (Path(settings.DATA_DIR) / "up.lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(f"another `up` runs with the data directory {settings.DATA_DIR}") from error

    def _refuse_taken_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.HOST, settings.PORT))
            except OSError as error:
                where = f"{settings.HOST}:{settings.PORT}"
                if error.errno == errno.EADDRINUSE:
                    raise CommandError(f"{where} is taken; set MMSERVE_PORT to a free port") from error
                raise CommandError(
                    f"{where} is no place to listen ({error.strerror}); set MMSERVE_HOST and MMSERVE_PORT"
                ) from error

    def _start(self, group: ProcessGroup, *, demo: bool) -> None:
        manage = [sys.executable, str(settings.BASE_DIR / "manage.py")]
        if not os.environ.get("REDIS_URL"):
            path = settings.EMBEDDED_REDIS_SOCKET
            group.start(Child("redis", embedded_redis.command(path, Path(settings.DATA_DIR) / "redis")))
        self._wait_for_redis()
        self._migrate()
        credentials = ensure_credentials()
        daphne = shutil.which("daphne", path=str(Path(sys.executable).parent)) or "daphne"
        # At a stop the gateway goes first and Redis last: engines say their last words to it.
        group.start(Child("controller", [*manage, "controller"], wave=1))
        group.start(Child("node", [*manage, "node"], grace_s=settings.DRAIN_S + GRACE_S, wave=1))
        group.start(Child("ops", [*manage, "rqworker", "ops"], wave=1))
        bind = ["-b", settings.HOST, "-p", str(settings.PORT)]
        group.start(
            Child(
                "gateway",
                [daphne, *bind, "--no-server-name", "-v", "0", "mmserve.asgi:application"],
                grace_s=settings.DRAIN_S + GRACE_S,
                wave=2,
            )
        )
        self._wait_for_gateway(group, credentials["url"])
        self._banner(credentials)
        if demo:
            from mmserve.demo import DemoFollower

            follower = DemoFollower(
                self.console,
                self.stopping,
                on_ready=lambda name, chats: self._curl(credentials, name, chats=chats),
            )
            threading.Thread(target=follower.run, name="demo", daemon=True).start()

    def _wait_for_redis(self) -> None:
        client = redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=2)
        given = os.environ.get("REDIS_URL")
        where = f"Redis at {settings.REDIS_URL.split('@')[-1]}" + (" (REDIS_URL)" if given else "")
        until = time.monotonic() + (SERVER_TIMEOUT_S if given else START_TIMEOUT_S)
        said = False
        while True:
            try:
                client.ping()
                return
            except redis.RedisError as error:
                if time.monotonic() > until or self.stopping.wait(0.05):
                    raise CommandError(f"{where} does not answer: {error}") from error
                if given and not said:
                    said = True
                    self.console.print(f"waiting for {where}: {error}", soft_wrap=True)

    def _migrate(self) -> None:
        try:
            call_command("migrate", verbosity=0, interactive=False)
        except OperationalError as error:
            raise CommandError(
                f"the database (DATABASE_URL) cannot be used: {' '.join(str(error).split())}"
            ) from error

    def _wait_for_gateway(self, group: ProcessGroup, url: str) -> None:
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310 - our own address
                    return
            except (urllib.error.URLError, OSError) as error:
                group.poll()
                if time.monotonic() > until or self.stopping.wait(0.1):
                    raise CommandError(
                        f"the gateway did not get ready: {error}; see logs/gateway.log"
                    ) from error

    def _banner(self, credentials: Credentials) -> None:
        self.stdout.write(
            "\n".join(
                [
                    "",
                    f"  mmserve   {credentials['url']}",
                    f"  admin     {credentials['url']}/admin/   {credentials['username']} / {credentials['password']}",
                    f"  API key   {credentials['api_key']}",
                    f"  (kept in {settings.DATA_DIR / 'credentials.json'})",
                    "",
                ]
            )
        )
        self.stdout.flush()

    def _curl(self, credentials: Credentials, model: str, *, chats: bool) -> None:
        path, asked = CHAT if chats else COMPLETION
        self.stdout.write(
            "\n".join(
                [
                    "",
                    f"{model} is ready. Paste this:",
                    "",
                    f"curl -N {credentials['url']}{path} \\",
                    f"  -H 'Authorization: Bearer {credentials['api_key']}' \\",
                    "  -H 'Content-Type: application/json' \\",
                    f'  -d \'{{"model": "{model}", "stream": true, "max_tokens": 60, "temperature": 0,',
                    f"       {asked}}}'",
                    "",
                ]
            )
        )
        self.stdout.flush()
