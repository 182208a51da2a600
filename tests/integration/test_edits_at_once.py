"""Bounds, deadlines and classes are edited while the gateway runs, and count for its next request: no restart.

The gateway polls each second for what it was not pushed; here it does not, so that the push alone is what is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client as Browser
from rest_framework.test import APIClient

from inference.actions import ensure_deployment
from inference.gateway.config import GatewayConfig
from inference.gateway.http import HotPath
from inference.gateway.runtime import GatewayRuntime
from inference.models import Deployment
from inference.snapshot import routing_table
from mmserve.key_actions import create_key
from mmserve.keys import CachedAuthenticator
from mmserve.models import AccessKey
from registry import actions, revision
from tests.checkpoints import write_checkpoint
from tests.integration.api.conftest import make_ready
from tests.integration.gateway.client import Client
from tests.integration.gateway.waiting import until

BODY = {"model": "acme/echo", "prompt": "say", "max_tokens": 8}


class Site:
    """A gateway on real rows: one wished-for model that nothing runs, so that its requests are held."""

    def __init__(self, runtime: GatewayRuntime, deployment: Deployment, key: AccessKey, raw: str) -> None:
        self.runtime = runtime
        self.deployment = deployment
        self.key = key
        self.client = Client(HotPath(lambda: runtime), raw)

    @contextlib.asynccontextmanager
    async def held(self, count: int) -> AsyncIterator[None]:
        """So many requests wait for the model."""
        tasks = [asyncio.create_task(self.client.post("/v1/completions", BODY)) for _ in range(count)]
        await until(lambda: len(self.runtime.hub) == count)
        await self.runtime.redis.ping()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, **body: Any) -> Any:
        """One request more, with a deadline that ends it soon if it is not refused."""
        return await self.client.post("/v1/completions", {**BODY, "deadline_ms": 200, **body})

    async def follows(self) -> None:
        """Until the gateway runs what was just saved."""
        number = await database_sync_to_async(revision.current)()
        await until(
            lambda: self.runtime.table.revision == number and self.runtime.authenticator.revision == number
        )


@pytest.fixture
async def site(
    transactional_db: None, redis_url: str, settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    monkeypatch.setattr("inference.gateway.table_watch.POLL_S", 600.0)
    settings.DATA_DIR = tmp_path
    source = write_checkpoint(tmp_path / "checkpoint").as_uri()

    def rows() -> tuple[Deployment, AccessKey, str]:
        ada = User.objects.create_superuser("ada", password="correct horse")
        version = make_ready(actions.register_model("acme/echo", actor="tests"), "1", source)
        actions.promote(version, actor="tests")
        deployment = ensure_deployment(version, actor="tests")
        Deployment.objects.filter(pk=deployment.pk).update(replicas=1, context_length=None)
        return deployment, *create_key(name="app", user=ada, actor="tests")

    deployment, key, raw = await sync_to_async(rows)()
    layer = RedisPubSubChannelLayer(hosts=[redis_url])
    runtime = GatewayRuntime(
        GatewayConfig(redis_url=redis_url),
        channel_layer=layer,
        authenticator=CachedAuthenticator(),
        table_source=database_sync_to_async(routing_table),
        revision_source=database_sync_to_async(revision.current),
    )
    runtime.start()
    await runtime.ready()
    yield Site(runtime, deployment, key, raw)
    await runtime.stop()
    await layer.flush()
    await sync_to_async(connections.close_all)()


def fields_of(browser: Browser, path: str) -> dict[str, Any]:
    """What the page's form would send as it is."""
    page = browser.get(path)
    assert page.status_code == 200
    form = page.context["adminform"].form
    found = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    for inline in page.context["inline_admin_formsets"]:
        prefix = inline.formset.prefix
        found |= {f"{prefix}-{kind}_FORMS": "0" for kind in ("TOTAL", "INITIAL", "MIN_NUM", "MAX_NUM")}
    return {
        name: "on" if value is True else value for name, value in found.items() if value not in (None, False)
    }


def save(path: str, **changes: Any) -> None:
    """A person changes fields of an admin page and presses Save."""
    browser = Browser()
    browser.force_login(User.objects.get())
    answer = browser.post(path, {**fields_of(browser, path), **changes})
    assert answer.status_code == 302, answer.context["adminform"].form.errors


def patch(path: str, **changes: Any) -> None:
    client = APIClient()
    client.force_login(User.objects.get())
    answer = client.patch(path, changes, format="json")
    assert answer.status_code == 200, answer.content


async def test_a_hold_bound_that_is_saved_in_the_admin_counts_at_once(site: Site) -> None:
    path = f"/admin/inference/deployment/{site.deployment.pk}/change/"
    async with site.held(2):
        assert (await site.ask()).status == 504, "held, until its own deadline"
        await sync_to_async(save)(path, hold_bound=2)
        await site.follows()
        refused = await site.ask()
        await sync_to_async(save)(path, hold_bound="")
        await site.follows()
        assert (await site.ask()).status == 504
    assert refused.status == 429
    assert "2 requests wait for it, 2 may" in refused.json()["error"]["message"]


async def test_a_queue_bound_and_a_deadline_that_are_patched_count_at_once(site: Site) -> None:
    path = f"/v1/registry/deployments/{site.deployment.pk}"
    await sync_to_async(patch)(path, queue_bound=1, deadline_s=1)
    await site.follows()
    async with site.held(1):
        assert (await site.ask()).status == 429
    late = await site.client.post("/v1/completions", BODY)
    assert late.status == 504, "it would have been 600 s"


async def test_a_keys_limits_and_class_count_at_once(site: Site) -> None:
    page, one = f"/admin/mmserve/accesskey/{site.key.pk}/change/", f"/v1/registry/keys/{site.key.pk}"
    assert (await site.ask(priority="high")).status == 403
    await sync_to_async(save)(page, priority="high", reason="a bigger customer")
    await site.follows()
    assert (await site.ask(priority="high")).status == 504

    await sync_to_async(patch)(one, max_concurrency=1)
    await site.follows()
    async with site.held(1):
        refused = await site.ask()
    assert refused.status == 429
    assert "1 requests at once" in refused.json()["error"]["message"]


def test_what_is_not_pushed_is_found_within_a_second() -> None:
    from inference.gateway import table_watch

    assert table_watch.POLL_S <= 1.0
