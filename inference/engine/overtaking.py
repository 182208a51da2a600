"""Who is more important does not wait for the KV cache of who is less.

vLLM's priority scheduling admits in the order of importance, and where two that run want the same block, the less
important one gives way. But one that waits to be admitted waits until somebody who runs is done, however long that
takes. Here a less important one gives way to it, too: vLLM preempts it as it does itself, and later goes on with it.
"""

from __future__ import annotations

import functools
import logging
import time
import weakref
from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from inference.engine.puller import AGED_AFTER_S

# Each time it computes anew what it had: after so many it stays.
MOST_TIMES = 3
LOOK_S = 1.0
PRIORITY = {"high": -1, "normal": 0, "low": 1}  # vLLM: lower goes first
HIGHEST = min(PRIORITY.values())

logger = logging.getLogger(__name__)
# By scheduler: who was the first of those that waited, and stayed so for a whole step.
_passed_over: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
# By scheduler: when it was last looked at who waits, since when each of them does, and who was raised last.
_waiting: weakref.WeakKeyDictionary[Any, tuple[float, dict[str, float], str]] = weakref.WeakKeyDictionary()


def with_overtaking() -> None:
    """Have each of vLLM's schedulers make way before it plans a step."""
    plan: Any = Scheduler.schedule
    if hasattr(plan, "__wrapped__"):
        return

    @functools.wraps(plan)
    def schedule(self: Scheduler, *args: Any, **kwargs: Any) -> Any:
        age(self, time.monotonic())
        make_way(self)
        return plan(self, *args, **kwargs)

    Scheduler.schedule = schedule  # type: ignore[method-assign]


def age(scheduler: Scheduler, now: float) -> None:
    """Give the highest class to one that has waited for AGED_AFTER_S while others overtook it; looks once a second."""
    looked_at, since, raised = _waiting.get(scheduler, (-LOOK_S, {}, ""))
    if scheduler.policy != SchedulingPolicy.PRIORITY or now - looked_at < LOOK_S:
        return
    waiting = list(scheduler.waiting)
    since = {one.request_id: since.get(one.request_id, now) for one in waiting}
    # One at a time, so that few who are important wait behind it.
    aged = [one for one in waiting if now - since[one.request_id] >= AGED_AFTER_S and raised not in since]
    overtaken = [one for one in aged if _is_overtaken(scheduler, one)]
    if overtaken:
        oldest = min(overtaken, key=lambda one: one.arrival_time)
        scheduler.waiting.remove_request(oldest)
        oldest.priority = HIGHEST
        scheduler.waiting.add_request(oldest)
        raised = oldest.request_id
        logger.info("%s has waited for long: nobody overtakes it any more", raised)
    _waiting[scheduler] = now, since, raised


def _is_overtaken(scheduler: Scheduler, one: Request) -> bool:
    """Somebody runs who is more important and came later."""
    return any(
        other.priority < one.priority and other.arrival_time > one.arrival_time for other in scheduler.running
    )


def make_way(scheduler: Scheduler) -> None:
    """Preempt as few of the less important as the first of those that wait needs to be admitted."""
    first = _first_waiting(scheduler)
    if first is None:
        _passed_over.pop(scheduler, None)
        return
    # What it shares with others in the cache it does not need: only the scheduler knows, and it has tried.
    if _passed_over.get(scheduler) != first.request_id:
        _passed_over[scheduler] = first.request_id
        return
    while _is_short(scheduler, first):
        victim = max(scheduler.running, key=lambda one: (one.priority, one.arrival_time))
        if (
            victim.priority <= first.priority
            or victim.num_preemptions >= MOST_TIMES
            or not scheduler._request_blocks_can_be_freed(victim)
        ):
            return
        scheduler.running.remove(victim)
        scheduler._preempt_request(victim, time.monotonic())
        # As vLLM does where one may be resumed in the step in which it was preempted.
        scheduler.prev_step_scheduled_req_ids.discard(victim.request_id)
        logger.info("%s gives way to %s", victim.request_id, first.request_id)


def _first_waiting(scheduler: Scheduler) -> Request | None:
    """Who would be admitted next, if only for a lack of room it is not."""
    if scheduler.policy != SchedulingPolicy.PRIORITY or not scheduler.waiting or not scheduler.running:
        return None
    first = scheduler.waiting.peek_request()
    return first if first.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) else None


def _is_short(scheduler: Scheduler, first: Request) -> bool:
    """Whether there is no place in the batch for it, or not enough of the cache."""
    if not scheduler.running:
        return False
    groups = scheduler.kv_cache_config.kv_cache_groups
    needed = sum(-(-first.num_tokens // group.kv_cache_spec.block_size) for group in groups)
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return len(scheduler.running) >= scheduler.max_num_active_reqs or free < needed
