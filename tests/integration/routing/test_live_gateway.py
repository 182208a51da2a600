"""A gateway process on the real rows: changes arrive, what it decided is replayed, what was rated is learned from."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.test import APIClient

from inference.gateway import table_watch
from inference.models import Deployment
from inference.notify import connection
from inference.snapshot import routing_table
from registry import revision
from routing.actions.routes import create_route
from routing.core.records import DECISIONS_KEY, decision_key
from routing.core.route import Cause
from routing.core.scorer import TRAITS
from routing.core.table import RoutingTable
from routing.experiments.watch import ExperimentWatch
from routing.models.experiments import Feedback
from routing.models.routes import TrainedScorer
from tests.integration.api.conftest import ada, manage_key, manager, source
from tests.integration.gateway.conftest import Gateway
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.waiting import until
from tests.integration.registry.test_commands import run
from tests.integration.routing.test_route_pages import FORM, LIST
from tests.integration.routing.test_routes import lines, versions

__all__ = ["ada", "manage_key", "manager", "source", "versions"]
pytestmark = pytest.mark.django_db(transaction=True)
NAMES = ("acme-large", "acme-small")


class OfTheRows(Gateway):
    """Its table is what the database says."""

    async def _table(self) -> RoutingTable:
        return await database_sync_to_async(routing_table)()

    async def _revision(self) -> int:
        return await database_sync_to_async(revision.current)()


class Process:
    """It, with an engine for each deployment, in a thread's event loop."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._loop = asyncio.new_event_loop()
        self._up, self._down = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._up.wait(60)

    def do(self, work: Callable[[Gateway], Awaitable[Any]]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(self._gateway), self._loop).result(60)

    def ask(self, prompt: str) -> str:
        """The decision's id."""
        answer = self.post({"model": "fast", "prompt": prompt, "max_tokens": 4})
        assert answer.status == 200, answer.body
        return answer.headers["x-mmserve-decision"]

    def post(self, body: dict[str, Any]) -> Any:
        """The answer to this body."""
        return self.do(lambda gateway: gateway.client.post("/v1/completions", body))

    def route(self) -> Any:
        """The route as this process has it now."""
        return self.table().routes.get("fast")

    def table(self) -> RoutingTable:
        """The table as this process has it now."""
        return self._gateway.runtime.table.current()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(60)
        self._loop.close()

    async def _run(self) -> None:
        gateway = self._gateway = OfTheRows(self._redis_url, decisions_per_s=1000.0)
        gateway.runtime.start()
        try:
            await gateway.runtime.ready()
            engines = [
                FakeEngine(self._redis_url, gateway.layer, deployment=name, script=words("a", "b"))
                for name in NAMES
            ]
            async with engines[0], engines[1]:
                loads = gateway.runtime.live.loads
                await until(lambda: all(name in loads and loads[name].ready for name in NAMES))
                self._up.set()
                await self._down.wait()
        finally:
            await gateway.runtime.stop()
            await gateway.layer.flush()
            self._up.set()


@pytest.fixture
def opened(redis_url: str) -> Iterator[Callable[[], Process]]:
    """``opened()`` is a gateway process."""
    made: list[Process] = []

    def open_one() -> Process:
        made.append(Process(redis_url))
        return made[-1]

    yield open_one
    for process in made:
        process.close()


def seen(condition: Callable[[], Any]) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def changed(manager: APIClient, process: Process) -> None:
    """Change the route over REST, and wait until the process has it."""
    [row] = manager.get("/v1/routing/routes").json()["results"]
    answer = manager.patch(f"/v1/routing/routes/{row['id']}", {"policy": "least_cost"}, format="json")
    assert answer.status_code == 200, answer.content
    seen(lambda: process.route().policy == "least_cost")


def test_a_changed_route_is_pushed_to_a_running_gateway(
    manager: APIClient, versions: Any, opened: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_watch, "POLL_S", 3600.0)
    create_route("fast", actor="tests", policy="priority", candidates=lines("acme/large"))
    process = opened()
    assert process.route().policy == "priority"
    changed(manager, process)


def test_a_changed_route_whose_push_is_lost_is_polled(
    manager: APIClient, versions: Any, opened: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_route("fast", actor="tests", policy="priority", candidates=lines("acme/large"))
    process = opened()
    lost: list[Any] = []
    monkeypatch.setattr("inference.notify.tell_gateways", lost.append)
    changed(manager, process)
    assert [message["type"] for message in lost] == ["config.revision"]


def test_a_models_new_fallback_is_pushed_and_serves(
    manager: APIClient, versions: Any, opened: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_watch, "POLL_S", 3600.0)
    process = opened()
    large = versions[0].model
    Deployment.objects.filter(name="acme-large").update(context_length=8)
    chain = {"fallbacks": ["acme/small"], "no_fallback_on": ["budget"], "first_token_ms": 2000}
    answer = manager.patch(f"/v1/registry/models/{large.pk}", chain, format="json")
    assert answer.status_code == 200, answer.content

    seen(lambda: process.table().models["acme/large"].fallbacks == ("acme/small",))

    entry = process.table().models["acme/large"]
    assert (entry.first_token_s, entry.fallback_on) == (2.0, frozenset(Cause) - {Cause.BUDGET})
    body = {"model": "acme/large", "prompt": "x", "max_tokens": 100}
    assert process.post(body).headers["x-mmserve-model"] == "acme/small@1"
    pinned = process.post({**body, "model": "acme/large@1"})
    assert (pinned.status, pinned.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_draft_is_tried_out_on_what_was_really_decided(
    versions: Any, opened: Callable[[], Process]
) -> None:
    route = create_route(
        "fast", actor="tests", policy="priority", candidates=lines("acme/large", "acme/small")
    )
    process = opened()
    for number in range(3):
        process.ask(f"question {number}")
    seen(lambda: connection().zcard(DECISIONS_KEY) == 3)
    admin = Client()
    admin.force_login(User.objects.create_superuser("eve", password="correct horse"))
    large, small = route.candidates.order_by("position")
    shown = admin.post(
        f"{LIST}{route.pk}/change/",
        {
            **FORM,
            "policy": "priority",
            "expected_revision": "1",
            "candidates-INITIAL_FORMS": "2",
            "candidates-0-id": str(large.pk),
            "candidates-0-route": str(route.pk),
            "candidates-1-id": str(small.pk),
            "candidates-1-route": str(route.pk),
        },
    )
    text = " ".join(shown.content.decode().split())
    assert "Nobody has asked for it lately" not in text
    assert "Of its last 3 requests, 3 would be served by another version" in text, text


def test_the_scorer_learns_from_stored_feedback(
    manager: APIClient, versions: Any, opened: Callable[[], Process]
) -> None:
    create_route("fast", actor="tests", policy="balanced", candidates=lines("acme/large"))
    process = opened()
    asked = 40
    for number in range(asked):
        code = number % 2
        decision = process.ask("def f(x):\n    return x" if code else "Who wrote Faust?")
        body = {"request_id": decision, "rating": float(code)}
        assert manager.post("/v1/feedback", body, format="json").status_code == 200
    seen(lambda: connection().zcard(DECISIONS_KEY) == asked)

    found = run("router_train", "--use")

    row = TrainedScorer.objects.get()
    assert (found["in_use"], row.rows) == (True, asked)
    assert found["gain"] > 0.1
    weights = dict(zip(TRAITS, row.weights["acme/large@1"], strict=True))
    assert weights["code"] > 0


@pytest.mark.parametrize("early", [True, False])
def test_the_scorer_learns_from_ratings_long_after_their_decisions_are_gone(
    manager: APIClient, versions: Any, opened: Callable[[], Process], early: bool
) -> None:
    create_route("fast", actor="tests", policy="balanced", candidates=lines("acme/large"))
    process, asked = opened(), []
    for number in range(24):
        asked.append(process.ask("def f(x):\n    return x" if number % 2 else "Who wrote Faust?"))
    seen(lambda: connection().zcard(DECISIONS_KEY) == len(asked))
    keys = [decision_key(one) for one in asked]
    kept = connection().mget(keys)
    if early:  # the ratings are there before the decisions are
        connection().delete(*keys)
    for number, decision in enumerate(asked):
        body = {"request_id": decision, "rating": float(number % 2)}
        assert manager.post("/v1/feedback", body, format="json").json()["in_experiment"] is False
    assert Feedback.objects.filter(traits__isnull=False).count() == (0 if early else len(asked))
    if early:
        connection().mset(dict(zip(keys, kept, strict=True)))
        ExperimentWatch().step(0.0)
    connection().delete(*keys)

    run("router_train", "--use")

    assert TrainedScorer.objects.get().rows == len(asked)
