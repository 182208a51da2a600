"""Events in order, joined when a reader is slow, and what can be continued elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.gateway.flight import GONE, MERGE_BEYOND, RESTARTED, STATUS, merged
from inference.protocol import ACCEPTED, DELTA, DONE, Sampling
from tests.unit.gateway.flights import flight, plan

USAGE = {"prompt_tokens": 2, "completion_tokens": 5, "cached_tokens": 1, "queued_s": 0.5}


def delta(seq: int, text: str, *, index: int = 0, finish: str | None = None, logprobs: object = None) -> list:
    return ["r-1", seq, DELTA, index, text, [seq], logprobs, finish, None]


async def test_next_waits_for_an_event_and_takes_all_that_came():
    one = flight()
    waiting = asyncio.create_task(one.next())
    await asyncio.sleep(0)
    one.take(["r-1", 0, ACCEPTED, "a", [2]], "a", 1.0)
    one.take(delta(1, "x"), "a", 1.0)
    assert [event[2] for event in await waiting] == [ACCEPTED, DELTA]
    assert (one.replica, one.prompt_tokens, one.tokens) == ("a", 2, [1])


def test_the_engines_count_is_the_usage():
    one = flight()
    one.take(["r-1", 0, DONE, USAGE], "a", 1.0)
    assert (one.prompt_tokens, one.completion_tokens, one.cached_tokens, one.queued_s) == (2, 5, 1, 0.5)


def test_an_echoed_prompt_is_no_token_of_the_answer():
    one = flight(of=plan("completions", echo=True))
    one.take(delta(0, "prompt"), "a", 1.0)
    one.take(delta(1, "answer"), "a", 2.0)
    assert one.tokens == [1]
    assert one.first_token_at == 2.0


def test_a_reader_that_takes_nothing_costs_one_event_a_choice():
    one = flight()
    for seq in range(10 * MERGE_BEYOND):
        one.take(delta(seq, "x"), "a", 1.0)
    assert len(one.pending) <= MERGE_BEYOND + 1
    assert "".join(event[4] for event in one.pending) == "x" * 10 * MERGE_BEYOND


events = st.lists(
    st.builds(
        lambda index, text, finish, logprobs: delta(
            0, text, index=index, finish=finish, logprobs=[{"token": text}] if logprobs else None
        ),
        st.integers(0, 2),
        st.sampled_from(["a", "b", ""]),
        st.sampled_from([None, None, None, "stop"]),
        st.booleans(),
    )
)


@given(events)
def test_joining_deltas_loses_nothing_and_keeps_the_order_of_each_choice(found):
    joined = merged(found)
    for index in range(3):
        for field, empty in ((4, ""), (5, []), (6, [])):
            before = sum((list(event[field] or empty) for event in found if event[3] == index), [])
            after = sum((list(event[field] or empty) for event in joined if event[3] == index), [])
            assert before == after
        assert [e[7] for e in found if e[3] == index and e[7]] == [
            e[7] for e in joined if e[3] == index and e[7]
        ]


def test_a_plain_answer_is_continued_after_its_tokens():
    one = flight()
    for seq in range(3):
        one.take(delta(seq, "x"), "a", 1.0)
    continued = one.continuation()
    assert continued is not None
    assert continued.resume_token_ids == [0, 1, 2]


@pytest.mark.parametrize(
    "of",
    [
        plan(sampling=Sampling(seed=1)),
        plan(sampling=Sampling(n=2)),
        plan(sampling=Sampling(presence_penalty=1.0)),
        plan(sampling=Sampling(frequency_penalty=1.0)),
        plan(sampling=Sampling(repetition_penalty=1.1)),
        plan(sampling=Sampling(json_schema="{}")),
        plan(sampling=Sampling(regex="a")),
        plan(sampling=Sampling(bad_words=["x"])),
        plan(want_logprobs=True),
        plan("completions", prompts=["a", "b"]),
    ],
)
def test_an_answer_with_more_state_than_its_tokens_is_not_continued(of):
    assert flight(of=of).continuation() is None


def test_an_answer_made_anew_begins_with_nothing():
    one = flight()
    one.take(delta(0, "x"), "a", 1.0)
    one.forget_answer()
    one.begin_attempt()
    assert (one.tokens, one.first_token_at, one.next_seq, one.job_id) == ([], None, 0, "r-2")
    assert [event[2] for event in one.pending] == [RESTARTED]


def test_a_client_that_left_is_not_forgotten_with_the_answer():
    one = flight()
    one.take(delta(0, "x"), "a", 1.0)
    one.push([one.job_id, -1, STATUS, b"{}"])
    one.push([one.job_id, -1, GONE])
    one.forget_answer()
    assert [event[2] for event in one.pending] == [STATUS, GONE, RESTARTED]
