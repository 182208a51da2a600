"""Empty jobs a second: the engine worker's bookkeeping against RQ's own SimpleWorker, in one run.

``python -m tests.bench.bench_worker [JOBS]``; a Redis of its own is started and stopped.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import redis
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from inference.protocol import JOB_GENERATE, GenerateRequest, Sampling, queue_name
from tests.bench.report import Figure, emit, say

JOBS = 30_000
PEER_JOBS = 1_000


def nothing(request: dict[str, object]) -> None:
    """The empty job of the stock worker."""


def fill(connection: redis.Redis, queue_name: str, function: str, count: int) -> None:
    """Enqueue so many jobs with RQ's own code."""
    queue = Queue(queue_name, connection=connection, serializer=JSONSerializer)
    request = GenerateRequest(
        request_id="r",
        reply_to="nobody",
        deadline=time.time() + 3600,
        sampling=Sampling(max_tokens=0),
        prompts=["x"],
    )
    kwargs = {"request": msgspec.to_builtins(request)}
    for _ in range(0, count, 500):
        queue.enqueue_many(
            [
                Queue.prepare_data(function, kwargs=kwargs, description="empty", result_ttl=60)
                for _ in range(500)
            ]
        )


def run_engine_worker(redis_url: str) -> None:
    """A child process: the engine worker over an engine that answers at once."""
    from inference.engine.worker import EngineWorker
    from tests.bench.instant_engine import InstantEngine

    engine = InstantEngine()
    EngineWorker(
        replica="bench",
        deployment="bench",
        redis_url=redis_url,
        open_engine=lambda tell_stage: engine,
        max_streams=engine.max_streams,
    ).work()


def engine_worker_rate(connection: redis.Redis, redis_url: str, jobs: int) -> float:
    """Jobs a second from the first one finished to the last one booked."""
    queue = queue_name("bench", "normal")
    connection.set("mmserve:gateway:nobody", 1)
    fill(connection, queue, JOB_GENERATE, jobs)
    process = multiprocessing.get_context("spawn").Process(target=run_engine_worker, args=(redis_url,))
    process.start()
    first: tuple[float, int] | None = None
    while True:
        done = connection.zcard(f"rq:finished:{queue}")
        now = time.perf_counter()
        if first is None and done:
            first = (now, done)
        if done >= jobs:
            break
        if not process.is_alive():
            raise RuntimeError(f"the worker ended with {process.exitcode}")
        time.sleep(0.005)
    process.terminate()
    process.join(20)
    assert first is not None
    return (jobs - first[1]) / (now - first[0])


def stock_rate(connection: redis.Redis, jobs: int) -> float:
    """The same of RQ's SimpleWorker, which forks nothing."""
    fill(connection, "stock", "tests.bench.bench_worker.nothing", jobs)
    queue = Queue("stock", connection=connection, serializer=JSONSerializer)
    worker = SimpleWorker(
        [queue], connection=connection, serializer=JSONSerializer, log_job_description=False
    )
    began = time.perf_counter()
    worker.work(burst=True, logging_level="ERROR")
    return jobs / (time.perf_counter() - began)


def main(jobs: int = JOBS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "redis.sock"
        server = subprocess.Popen(
            ["redis-server", "--unixsocket", str(socket), "--port", "0", "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not socket.exists():
                time.sleep(0.01)
            redis_url = f"unix://{socket}"
            connection = redis.Redis.from_url(redis_url)
            say(f"stock SimpleWorker, {PEER_JOBS} jobs")
            peer = stock_rate(connection, PEER_JOBS)
            say(f"engine worker, {jobs} jobs")
            ours = engine_worker_rate(connection, redis_url, jobs)
            ids = connection.zrange(f"rq:finished:{queue_name('bench', 'normal')}", 0, 0)
            assert Job.fetch(ids[0].decode(), connection=connection, serializer=JSONSerializer).is_finished
        finally:
            server.terminate()
            server.wait(10)
    emit(Figure(name="worker_empty_jobs", value=ours, unit="jobs/s", peer="rq SimpleWorker", peer_value=peer))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
