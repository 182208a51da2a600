"""Questions about engine options that this node's template answers."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from django.conf import settings

from inference.node.supervisor import ReplicaSupervisor
from inference.notify import connection
from inference.protocol import NOT_HERE, CheckRequest, OptionsCheck, checks_key
from registry import cache
from registry.models import ModelVersion

log = logging.getLogger(__name__)

AT_ONCE = 8


def answer_checks(node: str, supervisor: ReplicaSupervisor) -> None:
    """Take what waits. What cannot be answered here is not answered: who asks does not wait for long."""
    if not supervisor.template_ready:
        return
    waiting: Any = connection().lpop(checks_key(node), AT_ONCE)
    for packet in waiting or ():
        asked = msgspec.json.decode(packet, type=CheckRequest)
        keys = [asked.version, *([asked.draft] if asked.draft else [])]
        found = ModelVersion.objects.in_bulk(keys)
        if not all(key in found and cache.is_here(found[key]) for key in keys):
            connection().rpush(asked.reply_to, NOT_HERE)
            continue
        try:
            model_path, *draft_path = [str(cache.place_of(found[key])) for key in keys]
            # Of the files only the configuration is read: nothing is hashed for it.
            supervisor.check(
                OptionsCheck(
                    reply_to=asked.reply_to,
                    redis_url=settings.REDIS_URL,
                    model_path=model_path,
                    options=msgspec.structs.replace(asked.options, draft_path=next(iter(draft_path), None)),
                )
            )
        except Exception:  # a question must never end a node
            log.exception("the options of %s could not be checked", found[asked.version])
