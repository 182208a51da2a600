"""`manage.py node`: owns this machine's accelerators and engine processes."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import Any

import redis
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, close_old_connections

from inference.node.agent import NodeAgent, NodeReplaced, watched_beat
from inference.node.supervisor import ReplicaSupervisor
from inference.notify import connection, wake_when
from inference.protocol import node_channel

log = logging.getLogger("node")

TICK_S = 1.0
BUSY_TICK_S = 0.1
# After the drain's deadline: to reap, and to write down what ended.
LAST_WORDS_S = 10.0


class Command(BaseCommand):
    help = "Start, watch and stop the engine processes of this machine."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--name", default=settings.NODE_NAME, help="this node's name (MMSERVE_NODE_NAME)")

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        wake_when(stop, node_channel(options["name"]))
        supervisor = ReplicaSupervisor(
            beat=watched_beat,
            stuck_after_s=settings.ENGINE_STUCK_S,
            silent_after_s=settings.ENGINE_SILENT_S,
        )
        try:
            agent = NodeAgent(options["name"], supervisor)
            self._run(agent, options["name"], stop)
        except NodeReplaced as error:
            raise CommandError(str(error)) from error
        finally:
            supervisor.close(grace_s=0.0)

    def _run(self, agent: NodeAgent, name: str, stop: threading.Event) -> None:
        """Until the stop is asked for and every engine has drained: the lease is renewed meanwhile."""
        pubsub = connection().pubsub(ignore_subscribe_messages=True)
        subscribed = False
        give_up_at = float("inf")
        while not (agent.leaving and agent.is_empty) and time.monotonic() < give_up_at:
            busy = True
            try:
                close_old_connections()
                if stop.is_set() and not agent.leaving:
                    give_up_at = time.monotonic() + settings.DRAIN_S + LAST_WORDS_S
                    agent.leave()
                busy = agent.tick()
            except DatabaseError as error:
                # Engines go on without the database; only changes wait for it.
                log.warning("database: %s", error)
                time.sleep(BUSY_TICK_S if stop.is_set() else TICK_S)
            except redis.RedisError as error:
                log.warning("Redis: %s", error)
            try:
                if not subscribed:
                    pubsub.subscribe(node_channel(name))
                    subscribed = True
                pubsub.get_message(timeout=BUSY_TICK_S if busy else TICK_S)
            except redis.RedisError as error:
                log.warning("Redis: %s", error)
                subscribed = False
                time.sleep(BUSY_TICK_S if stop.is_set() else TICK_S)
