"""A deployment's engine options: as the engine takes them, what a device can do of them, and what vLLM says of them."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable
from datetime import timedelta

import msgspec
import redis
from django.utils import timezone

from inference.capacity.abilities import LIMITED, what_it_can
from inference.models import Deployment, Device, Node
from inference.notify import connection
from inference.protocol import CHECK_TTL_S, NOT_HERE, CheckRequest, EngineOptions, checks_key, node_channel
from mmserve.errors import InvalidRequest

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 4
ASKED_LATELY_S = 15
# What the engine is started with, by vLLM's name of it.
ENGINE_FIELDS = {
    "dtype": "dtype",
    "context_length": "max_model_len",
    "max_streams": "max_num_seqs",
    "max_batched_tokens": "max_num_batched_tokens",
    "kv_cache_bytes": "kv_cache_memory_bytes",
    "prefix_caching": "enable_prefix_caching",
    "in_process": "distributed_executor_backend",
    "tensor_parallel": "tensor parallel",
    "quantization": "quantization",
    "speculation": "speculative",
    "speculative_tokens": "num_speculative_tokens",
    "draft": "draft",
    "guided_decoding": "structured_outputs",
}


def engine_options(deployment: Deployment, *, draft_path: str | None = None) -> EngineOptions:
    """What the operator set of the engine; ``draft_path``: where its draft's files lie, on the node."""
    return EngineOptions(
        dtype=deployment.dtype,
        context_length=deployment.context_length,
        max_streams=deployment.max_streams,
        max_batched_tokens=deployment.max_batched_tokens,
        kv_cache_bytes=deployment.kv_cache_bytes,
        prefix_caching=deployment.prefix_caching,
        in_process=deployment.in_process,
        tensor_parallel=deployment.tensor_parallel,
        quantization=deployment.quantization or None,
        speculation=deployment.speculation or None,
        speculative_tokens=deployment.speculative_tokens,
        draft_path=draft_path,
        guided_decoding=deployment.guided_decoding,
        # vLLM has one switch for both models.
        trust_remote_code=all(one.model.trust_remote_code for one in deployment.loaded_versions),
    )


def check_abilities(deployment: Deployment) -> None:
    """Refuse what no device that is known can do, with the list of what it can."""
    devices = {str(row): row.abilities for row in Device.objects.select_related("node") if row.abilities}
    for field in LIMITED:
        refusals = [
            f"{name} can do {can}"
            for name, abilities in devices.items()
            if (can := what_it_can(abilities, field, getattr(deployment, field))) is not None
        ]
        if devices and len(refusals) == len(devices):
            raise InvalidRequest(
                f"{field}: no device can do {getattr(deployment, field)!r}; {'; '.join(refusals)}",
                param=field,
            )


def check_with_engine(deployment: Deployment, changed: Iterable[str]) -> str:
    """Ask a node for what vLLM's own argument classes say; without a node in time, its load will tell.

    Returns why nobody could be asked; empty: it was checked, or there is nothing to check. Call it outside a
    transaction: it waits for up to ANSWER_WITHIN_S seconds.
    """
    fields = [field for field in changed if field in ENGINE_FIELDS]
    cutoff = timezone.now() - timedelta(seconds=ASKED_LATELY_S)
    node = Node.objects.filter(last_seen__gte=cutoff, template_ready=True).order_by("name").first()
    if not fields:
        return ""
    if not deployment.version.facts:
        return "its files are not here yet"
    if node is None:
        return "no node is up"
    asked = CheckRequest(
        reply_to=f"mmserve:check:{uuid.uuid4().hex}",
        version=deployment.version_id,
        draft=deployment.draft_id,
        options=engine_options(deployment),
    )
    try:
        client = connection()
        client.rpush(checks_key(node.name), msgspec.json.encode(asked))
        client.expire(checks_key(node.name), CHECK_TTL_S)
        client.publish(node_channel(node.name), b"")
        found = client.blpop([asked.reply_to], timeout=ANSWER_WITHIN_S)
    except redis.RedisError as error:
        log.warning("options of %s were not checked by an engine: %s", deployment, error)
        return "Redis cannot be reached"
    answer = bytes(found[1]) if found else b""  # type: ignore[arg-type]
    if found is None:
        log.warning("options of %s were not checked by an engine: %s did not answer", deployment, node)
        return f"node {node} did not answer"
    if answer == NOT_HERE:
        whose = "its files or its draft's" if deployment.draft else "its files"
        return f"{whose} are not on node {node}"
    if why := answer.decode():
        raise InvalidRequest(f"{named(why, fields)}: {in_our_words(why)}", param=named(why, fields))
    return ""


def named(why: str, fields: list[str]) -> str:
    """The changed field that vLLM speaks of, else the first that was changed."""
    return next((field for field in fields if ENGINE_FIELDS[field] in why), fields[0])


def in_our_words(why: str) -> str:
    """The same with the names that operators know."""
    for ours, theirs in ENGINE_FIELDS.items():
        why = re.sub(rf"\b{theirs}\b", ours, why) if "_" in theirs else why
    return why
