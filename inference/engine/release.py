"""Cleans up after engine workers that died: their jobs must not stay in RQ's started registries."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Iterable

import redis

from inference.engine import rqkeys, scripts

ABANDONED = "the worker died, and its node with it"


def release_dead_worker(connection: redis.Redis, worker: str, reason: str) -> list[str]:
    """Move the worker's jobs to the failed registry and unregister it; the ids of the jobs.

    The gateways send the jobs to another replica by themselves, so nothing is enqueued here.
    """
    key, executions_key = rqkeys.worker_key(worker), rqkeys.worker_executions_key(worker)
    pairs = [_split(member) for member in connection.smembers(executions_key)]
    pipeline = connection.pipeline(transaction=False)
    for job_id, _ in pairs:
        pipeline.hget(rqkeys.job_key(job_id), "origin")
    origins = [(origin or b"").decode() for origin in pipeline.execute()]
    _fail(connection, worker, [(*pair, queue) for pair, queue in zip(pairs, origins, strict=True)], reason)
    _unregister(connection, key, executions_key)
    return [job_id for job_id, _ in pairs]


def release_abandoned(connection: redis.Redis, queues: Iterable[str]) -> list[str]:
    """Fail started jobs whose execution has expired: nobody was left to release them. Their ids."""
    found = []
    for queue in queues:
        expired = connection.zrangebyscore(rqkeys.wip_key(queue), 0, time.time())
        found += [(*_split(member), queue) for member in expired]
    _fail(connection, "", found, ABANDONED)
    return [job_id for job_id, _, _ in found]


def _split(member: bytes) -> tuple[str, str]:
    """Job id and execution id of an execution."""
    job_id, _, execution = member.decode().rpartition(":")
    return job_id, execution


def _fail(connection: redis.Redis, worker: str, executions: list[tuple[str, str, str]], reason: str) -> None:
    if not executions:
        return
    now = time.time()
    error = zlib.compress(reason.encode(errors="replace"))
    args: list[str | bytes | int | float] = [
        worker,
        rqkeys.stamp(now),
        now,
        rqkeys.RESULT_TTL_S,
        rqkeys.FAILURE_TTL_S,
        rqkeys.BLANK_DATA,
        "idle",
    ]
    for job_id, execution, queue in executions:
        args += [job_id, queue, execution, "failed", "0", "", error, base64.b64encode(error)]
    keys = [rqkeys.worker_key(worker), rqkeys.worker_executions_key(worker)]
    connection.register_script(scripts.source("finish"))(keys=keys, args=args)


def _unregister(connection: redis.Redis, key: str, executions_key: str) -> None:
    queues = connection.hget(key, "queues") or b""
    pipeline = connection.pipeline()
    pipeline.srem("rq:workers", key)
    for queue in queues.decode().split(","):
        pipeline.srem(f"rq:workers:{queue}", key)
    pipeline.delete(key, executions_key)
    pipeline.execute()
