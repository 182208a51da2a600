"""A route in a real browser: its effect, the preview of a change, and saving it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.test_admin import Site, browser, page, session, site

__all__ = ["browser", "page", "session", "site"]
pytestmark = pytest.mark.browser

SEED = """
import time
import msgspec
from django.utils import timezone
from inference.models import Deployment, Device, Node, Replica
from inference.notify import connection
from inference.protocol import ReplicaBeat, beat_key
from registry import actions
from registry.models import ModelVersion, VersionState

node = Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
device = Device.objects.create(node=node, name="cpu:0", kind="cpu", total_bytes=2**36, budget_bytes=2**35)
kinds = [
    ("acme/large", "9", 70_000_000_000, 3),
    ("acme/small", "1", 1_000_000_000, 40),
    ("acme/asleep", "2", 8_000_000_000, None),
]
for name, price, parameters, running in kinds:
    model = actions.register_model(name, actor="tests", tags=["region=eu"] if name != "acme/asleep" else [])
    version = ModelVersion.objects.create(
        model=model, version="1", source_uri="file:///nowhere", state=VersionState.READY,
        capabilities=["completion", "chat", "json"], price_input=price, price_output=price,
        facts={"context_length": 8192, "parameters": parameters},
    )
    actions.promote(version, actor="tests")
    made = Deployment.objects.create(name=name.replace("/", "-"), version=version, replicas=1)
    if running is not None:
        row = Replica.objects.create(deployment=made, device=device, state="ready", reserved_bytes=2**30)
        beat = ReplicaBeat(
            replica=str(row.pk), deployment=made.name, worker="w", state="ready", running=running, at=time.time(),
            max_streams=64, tokens_per_s=40.0 * running, ttft_s=0.02 * running, jobs_per_s=2.0,
        )
        connection().set(beat_key(str(row.pk)), msgspec.json.encode(beat))
"""


def shot(page: Page, name: str) -> None:
    """A picture, where somebody wants to look."""
    if folder := os.environ.get("MMSERVE_TEST_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_a_route_is_tried_out_in_the_admin_before_it_is_saved(site: Site, page: Page) -> None:
    site.shell(SEED)
    page.goto("/admin/routing/route/add/")
    page.fill("[name=name]", "fast")
    page.fill("[name=require]", "region=eu")
    for place, (target, weight) in enumerate(
        [("acme/large", "1"), ("acme/small", "3"), ("acme/asleep", "1")]
    ):
        if place:
            page.get_by_text("Add another Candidate").click()
        page.fill(f"[name=candidates-{place}-target]", target)
        page.fill(f"[name=candidates-{place}-weight]", weight)
        page.fill(f"[name=candidates-{place}-position]", str(place))
    page.click("[name=_save]")
    expect(page.locator("#moved")).to_contain_text("It is new. Of 1000 usual requests, these would serve")
    expect(page.locator("[data-candidate=acme-asleep]")).to_contain_text("is not tagged region=eu")
    shot(page, "route-new")
    page.get_by_role("button", name="Save the route").click()
    expect(page).to_have_url(f"{site.url}/admin/routing/route/")

    page.get_by_role("link", name="fast").first.click()
    expect(page.locator("#route-effect")).to_contain_text("What it does now")
    shot(page, "route-effect")
    page.fill("[name=candidates-0-weight]", "9")
    page.click("[name=_save]")
    expect(page.locator("#shares")).to_contain_text("acme/large@1")
    shot(page, "route-preview")
    page.get_by_role("button", name="Save the route").click()
    expect(page).to_have_url(f"{site.url}/admin/routing/route/")
    page.goto("/admin/")
    expect(page.locator("#applied")).to_be_visible()
    shot(page, "dashboard")
