"""`manage.py controller`: the leader-elected reconcile loop."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
import uuid
from typing import Any

import redis
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import DatabaseError, close_old_connections

from inference.leases import NodeLeases
from inference.notify import connection, wake_when
from inference.outlook import Outlook
from inference.protocol import CONTROLLER_CHANNEL
from inference.reconcile import reconcile
from inference.revisions import report
from inference.swapping import Swapper
from inference.usage_thread import UsageThread
from registry.revision import current
from routing.experiments.watch import ExperimentWatch

log = logging.getLogger("controller")

LEASE_KEY = "mmserve:controller:leader"
LEASE_MS = 10_000
TICK_S = 1.0
USAGE_ENDS_S = 10.0

# Renew the lease if it is ours, take it if it is free.
LEASE_LUA = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] or not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
"""
RELEASE_LUA = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Command(BaseCommand):
    help = "Make the replicas observed equal to the replicas desired (one leader at a time)."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        wake_when(stop, CONTROLLER_CHANNEL)
        client = connection()
        me = uuid.uuid4().hex
        lease = client.register_script(LEASE_LUA)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        swapper, outlook = Swapper(), Outlook()
        leases = NodeLeases(settings.NODE_LEASE_S)
        experiments = ExperimentWatch()
        leading = threading.Event()
        usage = UsageThread(leading, stop)
        # What was imported stays: the collector would look through all of it, again and again, for each batch of usage.
        gc.collect()
        gc.freeze()
        usage.start()
        subscribed = False
        while not stop.is_set():
            try:
                if not subscribed:
                    pubsub.subscribe(CONTROLLER_CHANNEL)
                    subscribed = True
                if lease(keys=[LEASE_KEY], args=[me, LEASE_MS]):
                    leading.set()
                    close_old_connections()
                    reconcile(swapper, leases, outlook)
                    experiments.step(time.monotonic())
                else:
                    leading.clear()
                # A pass reads the rows themselves: this one ran what is configured now.
                report(f"controller {me[:8]}", current())
                pubsub.get_message(timeout=TICK_S)
            except redis.RedisError as error:
                log.warning("Redis: %s", error)
                subscribed = False
                stop.wait(TICK_S)
            except DatabaseError as error:
                log.warning("database: %s", error)
                stop.wait(TICK_S)
        usage.join(USAGE_ENDS_S)
        try:
            client.eval(RELEASE_LUA, 1, LEASE_KEY, me)
        except redis.RedisError as error:
            log.warning("could not release the lease: %s", error)
