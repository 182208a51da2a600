"""A generate job exactly as RQ 3 keeps it: ``rq.job.Job.to_dict`` with the JSON serializer.

RQ's own Job and Queue objects cost more than all the rest of the admission.
tests/integration/gateway/test_rqjob.py holds this layout against the installed RQ.
"""

from __future__ import annotations

import zlib
from datetime import UTC, datetime

import msgspec

from inference.protocol import JOB_GENERATE, GenerateRequest

QUEUES_KEY = "rq:queues"
_DATA_PREFIX = b'["' + JOB_GENERATE.encode() + b'",null,[],{"request":'
_DATA_SUFFIX = b"}]"
_encoder = msgspec.json.Encoder()


def job_key(job_id: str) -> str:
    """Redis hash of a job."""
    return f"rq:job:{job_id}"


def queue_key(queue: str) -> str:
    """Redis list of a queue's waiting job ids."""
    return f"rq:queue:{queue}"


def job_fields(
    request: GenerateRequest,
    *,
    job_id: str,
    queue: str,
    now: float,
    timeout_s: int,
    result_ttl_s: int,
    failure_ttl_s: int,
) -> list[str | bytes | int]:
    """Field, value, field, value, … of the job's hash. The description is the job id, never the prompt."""
    data = _DATA_PREFIX + _encoder.encode(request) + _DATA_SUFFIX
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return [
        "created_at", stamp,
        "enqueued_at", stamp,
        "data", zlib.compress(data),
        "status", "queued",
        "origin", queue,
        "description", job_id,
        "timeout", timeout_s,
        "result_ttl", result_ttl_s,
        "failure_ttl", failure_ttl_s,
        "started_at", "",
        "ended_at", "",
        "last_heartbeat", "",
        "worker_name", "",
        "group_id", "",
        "success_callback_name", "",
        "failure_callback_name", "",
        "stopped_callback_name", "",
    ]  # fmt: skip
