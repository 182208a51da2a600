"""The job layout is held against the installed RQ."""

from __future__ import annotations

import json
import time
import zlib

import redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from inference.gateway.rqjob import QUEUES_KEY, job_fields, job_key, queue_key
from inference.protocol import JOB_GENERATE, GenerateRequest, Sampling


def request() -> GenerateRequest:
    return GenerateRequest(
        request_id="r", reply_to="c", deadline=9.0, sampling=Sampling(max_tokens=3), prompts=["secret"]
    )


def test_the_hash_is_the_one_that_stock_rq_writes(redis_url):
    client = redis.Redis.from_url(redis_url)
    queue = Queue("echo.normal", connection=client, serializer=JSONSerializer)
    fields = job_fields(
        request(),
        job_id="r-1",
        queue="echo.normal",
        now=time.time(),
        timeout_s=30,
        result_ttl_s=60,
        failure_ttl_s=90,
    )
    ours = dict(zip(fields[::2], fields[1::2], strict=True))
    argument = json.loads(zlib.decompress(ours["data"]))[3]["request"]
    queue.enqueue_call(
        JOB_GENERATE,
        kwargs={"request": argument},
        timeout=30,
        result_ttl=60,
        failure_ttl=90,
        job_id="r-1",
        description="r-1",
    )
    theirs = client.hgetall(job_key("r-1"))
    client.close()
    times = {b"created_at", b"enqueued_at"}
    assert {name.encode() for name in ours} == set(theirs)
    assert json.loads(zlib.decompress(ours["data"])) == json.loads(zlib.decompress(theirs[b"data"]))
    for name, value in ours.items():
        if name.encode() in times:
            assert len(value) == len(theirs[name.encode()])
        elif name != "data":
            assert str(value).encode() == theirs[name.encode()], name


def test_stock_rq_reads_the_job(redis_url):
    client = redis.Redis.from_url(redis_url)
    fields = job_fields(
        request(),
        job_id="r-1",
        queue="echo.normal",
        now=time.time(),
        timeout_s=30,
        result_ttl_s=60,
        failure_ttl_s=90,
    )
    client.hset(job_key("r-1"), items=fields)
    client.sadd(QUEUES_KEY, queue_key("echo.normal"))
    client.rpush(queue_key("echo.normal"), "r-1")
    queue = Queue("echo.normal", connection=client, serializer=JSONSerializer)
    job = Job.fetch("r-1", connection=client, serializer=JSONSerializer)
    assert queue.job_ids == ["r-1"]
    assert Queue.all(connection=client)[0].name == "echo.normal"
    assert (job.func_name, job.get_status().value, job.timeout) == (JOB_GENERATE, "queued", 30)
    assert job.kwargs["request"]["prompts"] == ["secret"]
    assert "secret" not in job.description
    client.close()
