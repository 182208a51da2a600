"""RQ 3's Redis keys and stamps that the worker writes by itself; tests hold them against the installed RQ."""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime

from inference.protocol import JOB_GENERATE, PRIORITIES, queue_name

EXECUTION_TTL_S = 90
RESULT_TTL_S = 60
FAILURE_TTL_S = 3600

# Takes the place of a job's data when it ended: Job.fetch still reads it, and the prompt is gone.
BLANK_DATA = zlib.compress(json.dumps([JOB_GENERATE, None, [], {}]).encode())


def stamp(now: float) -> str:
    """A unix time as RQ writes it."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix_time(rq_stamp: str, default: float) -> float:
    """A time that RQ wrote, as unix time."""
    try:
        return datetime.fromisoformat(rq_stamp).timestamp()
    except ValueError:
        return default


def deployment_queues(deployment: str) -> list[str]:
    """A deployment's queues in strict order of priority."""
    return [queue_name(deployment, priority) for priority in PRIORITIES]


def worker_name(replica: str, pid: int) -> str:
    """RQ name of the worker that serves a replica."""
    return f"{replica}-{pid}"


def queue_key(queue: str) -> str:
    return f"rq:queue:{queue}"


def worker_key(name: str) -> str:
    return f"rq:worker:{name}"


def worker_executions_key(name: str) -> str:
    return f"rq:worker:{name}:executions"


def job_key(job_id: str) -> str:
    return f"rq:job:{job_id}"


def wip_key(queue: str) -> str:
    return f"rq:wip:{queue}"
