"""Who runs which configuration: reported by each process, shown by the admin."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from inference import revisions
from inference.models import Node
from inference.protocol import REVISIONS_KEY, revision_report
from registry import actions
from registry.revision import current


@pytest.fixture
def reports(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    import redis

    client = redis.Redis.from_url(redis_url)
    client.delete(REVISIONS_KEY)
    monkeypatch.setattr(revisions, "connection", lambda: client)
    return client


def test_a_process_counts_once_it_runs_the_present_revision(reports: Any, db: None) -> None:
    actions.register_model("acme/echo", actor="tests")
    now = current()
    revisions.report("gateway a", now)
    revisions.report("controller b", now - 1)
    Node.objects.create(name="here", last_seen=timezone.now(), revision=now)

    found = revisions.applied()
    assert (found.revision, found.words) == (now, "2/3")
    assert found.behind == {"controller b": now - 1}
    revisions.report("controller b", now)
    assert revisions.applied().words == "3/3"


def test_whoever_is_silent_is_gone(reports: Any, db: None) -> None:
    reports.hset(REVISIONS_KEY, "gateway old", revision_report(1, time.time() - 60))
    assert revisions.applied().processes == {}
    assert reports.hlen(REVISIONS_KEY) == 0


def test_the_dashboard_says_how_far_it_got(reports: Any, db: None) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="correct horse"))
    actions.register_model("acme/echo", actor="tests")
    revisions.report("gateway a", current() - 1)
    page = client.get("/admin/").content.decode()
    assert "0/1" in page
    assert "behind: gateway a" in page
