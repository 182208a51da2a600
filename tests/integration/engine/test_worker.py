"""The engine worker over real Redis, read back with RQ's own classes. Only the engine is a stub."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable

import pytest
import redis
from rq import Worker
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result

from inference.engine import rqkeys, scripts
from inference.engine.fence import EXIT_FENCED
from inference.engine.release import release_abandoned, release_dead_worker
from inference.protocol import ACCEPTED, DONE, ERROR, bell_key, control_channel, fence_key, gateway_key
from tests.integration.engine.conftest import REAL
from tests.integration.engine.gateway import TestGateway, poll
from tests.integration.engine.stubs import StubEngine

StartWorker = Callable[..., Awaitable[subprocess.Popen[bytes]]]
FOREVER = {"max_tokens": 1_000_000}


async def test_a_job_is_streamed_in_order_and_booked_as_rq_would(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    job_id = gateway.submit(sampling={"max_tokens": 20})
    events = await gateway.ended(job_id)
    assert [event[1] for event in events] == list(range(22))
    assert events[0][2:] == [ACCEPTED, "r1", [1]]
    assert events[-1][2] == DONE
    assert events[-1][3]["completion_tokens"] == 20

    job = await gateway.booked(job_id, "finished")
    assert job.worker_name.startswith("r1-")
    assert job.ended_at >= job.started_at >= job.enqueued_at
    assert job.return_value() == {"prompt_tokens": 1, "completion_tokens": 20, "cached_tokens": 0}
    assert job.latest_result().type is Result.Type.SUCCESSFUL
    assert job.kwargs == {}  # the prompt is gone
    assert 0 < gateway.connection.ttl(job.key) <= rqkeys.RESULT_TTL_S
    assert FinishedJobRegistry(queue=gateway.queue()).get_job_ids() == [job_id]
    assert StartedJobRegistry(queue=gateway.queue()).get_job_ids() == []
    [record] = Worker.all(queue=gateway.queue())
    assert record.successful_job_count == 1
    assert record.get_current_executions() == []
    await poll(lambda: Worker.all(queue=gateway.queue())[0].get_state() == "idle", "an idle worker")


async def test_the_shares_of_engine_time_add_up_to_the_time_that_it_worked(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    began_at = time.time()
    alone = await gateway.ended(gateway.submit(sampling={"max_tokens": 20}))
    ids = [gateway.submit(sampling={"max_tokens": tokens}) for tokens in (10, 40, 40, 40)]
    together = [(await gateway.ended(job_id))[-1][3] for job_id in ids]
    waited_s = time.time() - began_at
    first = alone[-1][3]
    # Twenty steps of five milliseconds, with nobody to share them.
    assert 20 * StubEngine.STEP_S <= first["engine_s"] <= first["e2e_s"]
    steps_at_least = 40
    shared_s = sum(usage["engine_s"] for usage in together)
    assert steps_at_least * StubEngine.STEP_S <= shared_s
    assert shared_s + first["engine_s"] <= waited_s
    assert all(usage["engine_s"] <= usage["e2e_s"] for usage in together)


async def test_while_jobs_run_rq_sees_them_all_in_one_worker(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    ids = {gateway.submit(sampling=FOREVER) for _ in range(5)}
    for job_id in ids:
        await gateway.spoken(job_id)
    assert set(StartedJobRegistry(queue=gateway.queue()).get_job_ids()) == ids
    assert {gateway.job(job_id).get_status() for job_id in ids} == {"started"}
    [record] = Worker.all(queue=gateway.queue())
    assert record.get_state() == "busy"
    assert {execution.job_id for execution in record.get_current_executions()} == ids
    beat = await poll(
        lambda: (found := gateway.beat("r1")) and found.running == 5 and found, "a beat of five"
    )
    assert beat.tokens_per_s > 0
    assert beat.worker == record.name


async def test_jobs_are_pulled_in_strict_order_of_priority(worker: StartWorker, gateway: TestGateway) -> None:
    ids = {}
    for priority in ("low", "normal", "high"):
        ids[priority] = [gateway.submit(priority=priority, sampling={"max_tokens": 3}) for _ in range(2)]
    await worker(max_streams=1)
    for job_id in ids["low"]:
        await gateway.ended(job_id)
    accepted = [e[0] for message in gateway.messages for e in message["events"] if e[2] == ACCEPTED]
    assert accepted == [*ids["high"], *ids["normal"], *ids["low"]]


async def test_a_full_replica_takes_what_overtakes_and_keeps_what_it_has(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker(max_streams=4)  # and one in hand
    low = [gateway.submit(priority="low", sampling=FOREVER) for _ in range(7)]
    await poll(lambda: (beat := gateway.beat("r1")) and beat.steps > 0, "a step")
    await poll(lambda: len(gateway.queue("low")) == 2, "a full replica")
    normal = gateway.submit(priority="normal", sampling={"max_tokens": 3})
    high = gateway.submit(priority="high", sampling={"max_tokens": 3})
    for job_id in (normal, high):
        assert (await gateway.ended(job_id))[-1][2] == DONE
    assert len(gateway.queue("low")) == 2, "nobody of its own class went in beside them"
    running = [job_id for job_id in low if job_id in gateway.events]
    assert len(running) == 5
    for job_id in running:
        await gateway.cancel("r1", job_id)
        events = await gateway.ended(job_id)
        assert events[-1][3]["completion_tokens"] == len(gateway.tokens(job_id)), "none lost a word"
    for job_id in low:
        await gateway.cancel("r1", job_id)
        assert (await gateway.ended(job_id))[-1][2] == DONE


async def test_those_that_overtake_are_bounded(worker: StartWorker, gateway: TestGateway) -> None:
    await worker(max_streams=4)
    for _ in range(5):
        await gateway.spoken(gateway.submit(priority="low", sampling=FOREVER))
    high = [gateway.submit(priority="high", sampling=FOREVER) for _ in range(8)]
    await poll(lambda: len(gateway.queue("high")) == 3, "five more")
    # A look later nothing has changed: it is asked for what the last one in the queue waits for.
    for job_id in high[:5]:
        await gateway.spoken(job_id, 40)
    assert len(gateway.queue("high")) == 3
    await gateway.cancel("r1", high[0])
    await gateway.spoken(high[5])


async def test_a_job_of_a_stock_enqueue_is_found_without_a_bell(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    await gateway.ended(gateway.submit(ring=False, sampling={"max_tokens": 1}))


async def test_two_replicas_share_a_queue(worker: StartWorker, gateway: TestGateway) -> None:
    await worker("r1", max_streams=2)
    await worker("r2", max_streams=2)
    ids = [gateway.submit(sampling={"max_tokens": 50}) for _ in range(12)]
    served = {(await gateway.ended(job_id))[0][3] for job_id in ids}
    assert served == {"r1", "r2"}


async def test_an_unknown_function_fails_alone(worker: StartWorker, gateway: TestGateway) -> None:
    await worker()
    good = gateway.submit(sampling={"max_tokens": 100})
    bad = gateway.submit(function="os.system")
    [event] = await gateway.ended(bad)
    assert event[2] == ERROR
    assert event[3]["code"] == "unknown_function"
    assert (await gateway.ended(good))[-1][2] == DONE
    await gateway.booked(bad, "failed")
    assert FailedJobRegistry(queue=gateway.queue()).get_job_ids() == [bad]


async def test_malformed_data_fails_alone(worker: StartWorker, gateway: TestGateway) -> None:
    await worker()
    bad = gateway.submit(ring=False, job_id="bad", sampling={"max_tokens": 1})
    await gateway.ended(bad)
    gateway.connection.hset("rq:job:worse", mapping={"data": b"\x80\x04pickle", "origin": "stub.normal"})
    gateway.connection.rpush("rq:queue:stub.normal", "worse")
    good = gateway.submit(sampling={"max_tokens": 1})
    assert (await gateway.ended(good))[-1][2] == DONE
    await poll(lambda: gateway.connection.hget("rq:job:worse", "status") == b"failed", "the failure")


async def test_a_refused_request_names_its_parameter_and_disturbs_nobody(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    good = gateway.submit(sampling={"max_tokens": 50})
    [refused] = await gateway.ended(gateway.submit(prompts=["refused"]))
    assert refused[3] == {"code": "invalid_value", "message": "refused indeed", "param": "prompt"}
    [broken] = await gateway.ended(gateway.submit(prompts=["broken"]))
    assert broken[3]["code"] == "internal_error"
    assert "secret" not in broken[3]["message"]
    assert (await gateway.ended(good))[-1][2] == DONE


async def test_the_failed_registry_keeps_no_prompt(worker: StartWorker, gateway: TestGateway) -> None:
    await worker()
    job_id = gateway.submit(prompts=["broken"])
    await gateway.ended(job_id)
    job = await gateway.booked(job_id, "failed")
    assert job.latest_result().exc_string == "MmserveError: internal_error"
    assert job.kwargs == {}
    assert rqkeys.RESULT_TTL_S < gateway.connection.ttl(job.key) <= rqkeys.FAILURE_TTL_S


async def test_a_cancelled_job_leaves_the_batch_and_its_use_is_told(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    job_id = gateway.submit(sampling=FOREVER)
    await gateway.spoken(job_id, 3)
    await gateway.cancel("r1", job_id)
    events = await gateway.ended(job_id)
    assert events[-1][2] == DONE
    assert events[-1][3]["completion_tokens"] == len(gateway.tokens(job_id))
    await gateway.booked(job_id, "canceled")
    assert CanceledJobRegistry(queue=gateway.queue()).get_job_ids() == [job_id]
    await poll(lambda: (beat := gateway.beat("r1")) and beat.running == 0, "an empty batch")


async def test_a_cancel_that_overtakes_its_job_stops_it_before_the_engine(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    await gateway.cancel("r1", "early")
    # The answer to a later control message says that the cancel has been read.
    await gateway.resend("r1", ("early", 0))
    [event] = await gateway.ended(gateway.submit(job_id="early", sampling=FOREVER))
    assert event[2] == DONE
    assert event[3]["completion_tokens"] == 0


async def test_a_deadline_that_passed_in_the_queue_keeps_the_job_from_the_engine(
    worker: StartWorker, gateway: TestGateway
) -> None:
    job_id = gateway.submit(deadline_s=-1.0)
    await worker()
    [event] = await gateway.ended(job_id)
    assert event[3]["code"] == "deadline_exceeded"
    await gateway.booked(job_id, "failed")


async def test_a_deadline_ends_a_running_job(worker: StartWorker, gateway: TestGateway) -> None:
    await worker()
    job_id = gateway.submit(deadline_s=1.0, sampling=FOREVER)
    events = await gateway.ended(job_id)
    assert len(events) > 2
    assert events[-1][3]["code"] == "deadline_exceeded"


async def test_the_jobs_of_a_gateway_that_is_gone_are_aborted(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    job_id = gateway.submit(sampling=FOREVER)
    await gateway.spoken(job_id)
    gateway.connection.delete(gateway_key(gateway.channel))
    job = await gateway.booked(job_id, "canceled")
    assert job.latest_result().type is Result.Type.STOPPED


async def test_missed_events_are_sent_again_while_running_and_after(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    running = gateway.submit(sampling=FOREVER)
    finished = gateway.submit(sampling={"max_tokens": 3})
    await gateway.spoken(running, 5)
    events = await gateway.ended(finished)
    answer = await gateway.resend("r1", (running, 2), (finished, 1), ("never", 0))
    assert answer["unknown"] == ["never"]
    [[alive, next_seq]] = answer["alive"]
    assert alive == running
    again = [event for event in answer["events"] if event[0] == running]
    assert [event[1] for event in again] == list(range(2, next_seq))
    assert [event for event in answer["events"] if event[0] == finished] == events[1:]


async def test_a_finished_job_that_is_enqueued_again_is_answered_from_memory(
    worker: StartWorker, gateway: TestGateway
) -> None:
    await worker()
    job_id = gateway.submit(sampling={"max_tokens": 3})
    first = await gateway.ended(job_id)
    gateway.events.clear()
    gateway.submit(job_id=job_id, sampling={"max_tokens": 3})
    assert await gateway.ended(job_id) == first


async def test_a_term_signal_lets_running_jobs_finish(worker: StartWorker, gateway: TestGateway) -> None:
    process = await worker()
    job_id = gateway.submit(sampling={"max_tokens": 100})
    await gateway.spoken(job_id)
    process.send_signal(signal.SIGTERM)
    events = await gateway.ended(job_id)
    assert events[-1][2] == DONE
    assert await asyncio.to_thread(process.wait, 20) == 0
    await gateway.booked(job_id, "finished")
    assert Worker.all(queue=gateway.queue()) == []


async def test_a_drain_gives_back_what_has_not_begun_and_leaves_the_rest_to_the_gateways(
    worker: StartWorker, gateway: TestGateway
) -> None:
    process = await worker(max_streams=1)
    running = gateway.submit(sampling=FOREVER)
    await gateway.spoken(running)
    waiting = [gateway.submit(sampling=FOREVER) for _ in range(3)]
    await gateway.layer.send(control_channel("r1"), {"type": "engine.drain", "deadline_s": 0.2})
    assert await asyncio.to_thread(process.wait, 20) == 0
    spoken = {job_id for job_id in waiting if gateway.deltas(job_id)}
    assert gateway.queue().get_job_ids() == [job_id for job_id in waiting if job_id not in spoken]
    assert all(gateway.job(job_id).get_status() == "queued" for job_id in waiting if job_id not in spoken)
    assert gateway.events[running][-1][2] not in (DONE, ERROR)
    assert gateway.job(running).get_status() == "failed"
    assert StartedJobRegistry(queue=gateway.queue()).get_job_ids(cleanup=False) == []


async def test_a_dead_engine_ends_the_worker_and_its_jobs_are_released(
    worker: StartWorker, gateway: TestGateway
) -> None:
    process = await worker()
    job_id = gateway.submit(sampling=FOREVER)
    await gateway.spoken(job_id)
    gateway.submit(prompts=["deadly"])
    assert await asyncio.to_thread(process.wait, 20) != 0
    assert gateway.job(job_id).get_status() == "started"

    name = rqkeys.worker_name("r1", process.pid)
    assert job_id in release_dead_worker(gateway.connection, name, "killed by signal 9")
    job = gateway.job(job_id)
    assert job.get_status() == "failed"
    assert job.latest_result().exc_string == "killed by signal 9"
    assert StartedJobRegistry(queue=gateway.queue()).get_job_ids(cleanup=False) == []
    assert Worker.all(queue=gateway.queue()) == []


async def test_a_new_worker_releases_what_a_dead_node_left(worker: StartWorker, gateway: TestGateway) -> None:
    process = await worker()
    job_id = gateway.submit(sampling=FOREVER)
    await gateway.spoken(job_id)
    process.kill()
    process.wait(10)
    [execution] = gateway.connection.zrange("rq:wip:stub.normal", 0, -1)
    gateway.connection.zadd("rq:wip:stub.normal", {execution: time.time() - 1})
    assert release_abandoned(gateway.connection, ["stub.normal"]) == [job_id]
    assert gateway.job(job_id).get_status() == "failed"
    assert StartedJobRegistry(queue=gateway.queue()).get_job_ids(cleanup=False) == []


async def test_a_pull_whose_reply_was_lost_is_taken_over(worker: StartWorker, gateway: TestGateway) -> None:
    process = await worker()
    connection = gateway.connection
    name = rqkeys.worker_name("r1", process.pid)
    connection.rpush(
        "rq:queue:elsewhere", gateway.submit(ring=False, job_id="lost", sampling={"max_tokens": 2})
    )
    connection.lrem("rq:queue:stub.normal", 0, "lost")
    keys = ["rq:queue:elsewhere", bell_key("x"), rqkeys.worker_key(name), rqkeys.worker_executions_key(name)]
    keys.append(fence_key("r1"))
    aged = rqkeys.stamp(0.0)
    args = [1, name, rqkeys.stamp(time.time()), time.time(), 90, "f" * 24, aged, "r1", "stub.normal"]
    assert len(connection.register_script(scripts.source("pull"))(keys=keys, args=args)) in (2, 3)

    def is_interrupted() -> bool:
        waiting = [client["id"] for client in connection.client_list() if client["cmd"] == "blpop"]
        return any(connection.client_kill_filter(_id=client) for client in waiting)

    await poll(is_interrupted, "the worker waits for its bell")
    assert (await gateway.ended("lost"))[-1][2] == DONE
    await gateway.booked("lost", "finished")


@pytest.mark.parametrize("damage", ["flush", "kill_connections"])
async def test_generation_outlives_redis_trouble(
    worker: StartWorker, gateway: TestGateway, damage: str
) -> None:
    process = await worker()
    job_id = gateway.submit(sampling={"max_tokens": 200})
    await gateway.spoken(job_id, 5)
    if damage == "flush":
        gateway.connection.flushall()
        gateway.sign_in()
    else:
        gateway.connection.client_kill_filter(_type="normal", skipme=True)
    answer = await gateway.resend("r1", (job_id, 0))
    assert len(answer["events"]) >= 5
    events = await gateway.ended(job_id)
    assert len(events) == 202
    second = gateway.submit(sampling={"max_tokens": 2})
    assert (await gateway.ended(second))[-1][2] == DONE
    await gateway.booked(second, "finished")
    assert process.poll() is None
    await poll(lambda: Worker.all(queue=gateway.queue()), "the worker's record")


async def test_redis_memory_stays_bounded(worker: StartWorker, gateway: TestGateway) -> None:
    await worker(max_streams=64)
    ids = [gateway.submit(sampling={"max_tokens": 1}) for _ in range(200)]
    for job_id in ids:
        await gateway.ended(job_id)
    await poll(lambda: len(FinishedJobRegistry(queue=gateway.queue())) == 200, "all booked")
    connection: redis.Redis = gateway.connection
    # The real engine of other tests may live beside this one in the session's Redis.
    ours = [key for key in connection.keys("rq:*") if not key.startswith(f"rq:workers:{REAL}.".encode())]
    lasting = {key.decode() for key in ours if connection.ttl(key) == -1}
    assert lasting <= {
        "rq:queues",
        "rq:workers",
        "rq:finished:stub.normal",
        *(f"rq:workers:stub.{priority}" for priority in ("high", "normal", "low")),
    }


async def test_a_replica_that_was_given_up_gets_no_job_and_ends_itself(
    worker: StartWorker, gateway: TestGateway
) -> None:
    process = await worker()
    process.send_signal(signal.SIGSTOP)
    gateway.connection.set(fence_key("r1"), b"")
    waiting = gateway.submit(sampling={"max_tokens": 2})
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == EXIT_FENCED
    assert gateway.queue().job_ids == [waiting]
    await worker("r2")
    assert (await gateway.ended(waiting))[-1][2] == DONE
