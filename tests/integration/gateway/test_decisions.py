"""What is written down of decisions: by id, bounded, sampled, and never a prompt."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import redis

from routing.core.records import DECISIONS_KEY, DecisionRecord, decision_key
from routing.core.scorer import traits_of
from tests.integration.gateway.conftest import Gateway, heard
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.test_experiments import experiment, table
from tests.integration.gateway.waiting import until

BODY = {"model": "acme/echo", "prompt": "a secret question", "max_tokens": 10}


def engine(gateway: Gateway) -> FakeEngine:
    return FakeEngine(gateway.redis_url, gateway.layer, script=words("x", "y"))


async def kept(gateway: Gateway, decision_id: str) -> tuple[DecisionRecord, bytes]:
    client = redis.Redis.from_url(gateway.redis_url)
    raw: Any = await until(lambda: client.get(decision_key(decision_id)))
    client.close()
    return msgspec.json.decode(raw, type=DecisionRecord), raw


def ids(gateway: Gateway) -> list[str]:
    client = redis.Redis.from_url(gateway.redis_url)
    found = [one.decode() for one in client.zrange(DECISIONS_KEY, 0, -1)]
    assert {f"mmserve:decision:{one}" for one in found} == {
        key.decode() for key in client.keys("mmserve:decision:*")
    }
    client.close()
    return found


async def test_the_id_in_the_header_finds_candidates_and_outcome_without_the_prompt(open_gateway):
    async with open_gateway() as gateway, engine(gateway):
        answer = await gateway.client.post("/v1/completions", BODY)
        record, raw = await kept(gateway, answer.headers["x-mmserve-decision"])
    assert (record.outcome, record.status, record.deployment) == ("completed", 200, "echo")
    assert (record.decision.chosen, record.decision.revision) == ("echo", 1)
    assert [one.id for one in record.decision.candidates] == ["echo"]
    assert (record.prompt_tokens, record.completion_tokens) == (3, 2)
    assert 0 < record.ttft_s <= record.e2e_s
    assert b"secret" not in raw


async def test_what_a_scorer_can_learn_from_is_kept_though_none_judges_yet(open_gateway):
    async with open_gateway() as gateway, engine(gateway):
        await heard(gateway)
        answer = await gateway.client.post("/v1/completions", {**BODY, "model": "auto"})
        record, raw = await kept(gateway, answer.headers["x-mmserve-decision"])
        plain, _ = await kept(
            gateway, (await gateway.client.post("/v1/completions", BODY)).headers["x-mmserve-decision"]
        )
    assert answer.status == 200
    assert record.facts.traits == traits_of(BODY["prompt"])
    assert plain.facts.traits is None
    assert b"secret" not in raw


async def test_who_asked_is_kept_as_the_key_only_though_an_experiment_looks_at_the_user(open_gateway):
    async with open_gateway() as gateway, engine(gateway):
        gateway.runtime.table._table = table(experiment(unit="user"), deployed=False)
        await heard(gateway)
        answer = await gateway.client.post(
            "/v1/completions", {**BODY, "user": "ann@example.org"}, headers={"x-mmserve-session": "s-77"}
        )
        record, raw = await kept(gateway, answer.headers["x-mmserve-decision"])
    assert record.assignments["faster"] in ("control", "new")
    assert b"ann@example.org" not in raw
    assert b"s-77" not in raw


async def test_a_refusal_has_an_id_and_its_reasons(open_gateway):
    async with open_gateway() as gateway, engine(gateway):
        await heard(gateway)
        refused = await gateway.client.post("/v1/chat/completions", {"model": "base", "messages": [
            {"role": "user", "content": "a secret question"}]})  # fmt: skip
        record, raw = await kept(gateway, refused.headers["x-mmserve-decision"])
    assert refused.status >= 400
    assert record.outcome == refused.json()["error"]["code"]
    assert record.decision.chosen is None
    assert record.decision.candidates[0].reasons
    assert b"secret" not in raw


async def test_only_the_last_ones_are_kept(open_gateway):
    async with open_gateway(decisions_kept=3) as gateway, engine(gateway):
        last = [
            (await gateway.client.post("/v1/completions", BODY)).headers["x-mmserve-decision"]
            for _ in range(7)
        ][-3:]
        await until(lambda: ids(gateway) == last)


async def test_of_many_a_second_a_sample_is_kept_and_all_are_counted(open_gateway):
    async with open_gateway(decisions_per_s=1.0) as gateway, engine(gateway):
        await heard(gateway)
        gateway.table = gateway.table_with(revision=2, queue_bound=200)
        await gateway.runtime.table.look()
        await asyncio.gather(*[gateway.client.post("/v1/completions", BODY) for _ in range(60)])
        client = redis.Redis.from_url(gateway.redis_url)
        await until(lambda: client.xlen("mmserve:usage") == 60)
        client.close()
        assert 1 <= len(ids(gateway)) < 30


async def test_a_rate_of_less_than_one_in_some_seconds_keeps_one(open_gateway):
    async with open_gateway(decisions_per_s=0.1) as gateway, engine(gateway):
        kept = (await gateway.client.post("/v1/completions", BODY)).headers["x-mmserve-decision"]
        await gateway.client.post("/v1/completions", BODY)
        await until(lambda: ids(gateway) == [kept])


async def test_a_gateway_can_be_told_to_keep_none(open_gateway):
    async with open_gateway(decisions_per_s=0.0) as gateway, engine(gateway):
        answer = await gateway.client.post("/v1/completions", BODY)
        client = redis.Redis.from_url(gateway.redis_url)
        await until(lambda: client.xlen("mmserve:usage") == 1)
        client.close()
        assert answer.headers["x-mmserve-decision"]
        assert ids(gateway) == []
