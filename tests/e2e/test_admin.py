"""The admin in a real browser, against a live server with a database and a Redis."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.checkpoints import write_checkpoint
from tests.e2e.platform import ROOT, free_port, wait_until

pytestmark = pytest.mark.browser

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "correct horse battery"
WIDTH, HEIGHT = 1440, 900


class Site:
    """A gateway process with its admin, and the commands beside it."""

    def __init__(self, data: Path, redis_url: str) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "MMSERVE_DATA_DIR": str(data),
            "MMSERVE_PORT": str(self.port),
            "REDIS_URL": redis_url,
            "DATABASE_URL": f"sqlite:///{data}/mmserve.sqlite3",
        }
        data.mkdir()
        self.manage("migrate", "-v0")
        self.manage("createsuperuser", "--noinput", "--username", "ada", "--email", "ada@example.org")
        self.log = (data / "gateway.log").open("wb")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "daphne",
                "-b",
                "127.0.0.1",
                "-p",
                str(self.port),
                "mmserve.asgi:application",
            ],
            cwd=ROOT,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def manage(self, *arguments: str) -> str:
        """A command's stdout."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**self.environment, "DJANGO_SUPERUSER_PASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, code: str) -> str:
        return self.manage("shell", "-v0", "-c", code)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.data / "gateway.log").read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def version(self, name: str, *, ready: bool = True) -> None:
        """``name@1`` from a tiny checkpoint, its import run by the stock worker."""
        source = write_checkpoint(self.data / "checkpoints" / name).as_uri()
        self.manage("model_register", name, "1", source)
        if ready:
            self.manage("model_import", f"{name}@1")
            self.manage("rqworker", "ops", "--burst")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> Iterator[Site]:
    started = Site(tmp_path_factory.mktemp("admin") / "data", redis_server)
    try:
        wait_until(started.answers, 60, "the gateway answers")
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="module")
def session(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    """A browser that ada has logged in with."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, base_url=site.url)
    context.set_default_timeout(20_000)
    page = context.new_page()
    log_in(page, "ada")
    # A page that is closed in the middle of a navigation can hang the browser.
    expect(page).to_have_title(re.compile("Dashboard"))
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(session: BrowserContext) -> Iterator[Page]:
    """A page that fails its test when the server or a script fails."""
    opened = session.new_page()
    problems: list[str] = []
    opened.on("response", lambda answer: problems.append(answer.url) if answer.status >= 500 else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    opened.close()
    assert problems == []


def log_in(page: Page, username: str, password: str = PASSWORD) -> None:
    page.goto("/admin/")
    page.fill("input[name=username]", username)
    page.fill("input[name=password]", password)
    page.click("button[type=submit]")


def say(page: Page) -> Any:
    """The messages on the page."""
    return expect(page.locator("body"))


def press(page: Page, name: str) -> None:
    """Press the link or button that reads so; an icon's name may stand before the words."""
    words = re.compile(rf"(^|\s){re.escape(name)}\s*$")
    page.locator("a, button, input[type=submit]").filter(has_text=words).first.click()


def press_below_more(page: Page, name: str) -> None:
    """Press an action that stands in the drop-down."""
    page.locator("li[x-ref^='actionDropdown'] > a").click()
    press(page, name)


def confirm(page: Page, button: str, reason: str = "") -> None:
    """Fill in and send the confirmation that an action asks for."""
    page.fill("textarea[name=reason]", reason)
    with page.expect_navigation():
        page.click(f"form button:has-text('{button}')")


def save(page: Page) -> None:
    with page.expect_navigation():
        page.click("button[name=_save], input[name=_save]")


def open_version(page: Page, name: str) -> None:
    page.goto(f"/admin/registry/modelversion/?q={name}")
    page.click(f"#result_list a:has-text('{name}@')")
    page.wait_for_load_state("load")  # its drop-downs open by script


def test_a_wrong_password_is_refused_and_the_right_one_opens_the_dashboard(
    browser: Browser, site: Site
) -> None:
    with browser.new_context(base_url=site.url) as context:
        page = context.new_page()
        log_in(page, "ada", "wrong")
        say(page).to_contain_text("correct username and password")
        log_in(page, "ada")
        expect(page).to_have_title(re.compile("Dashboard"))
        expect(page.get_by_text("Recent events")).to_be_visible()


def test_a_model_is_registered_and_a_bad_name_comes_back_with_what_was_typed(page: Page) -> None:
    page.goto("/admin/registry/model/add/")
    page.fill("input[name=name]", "not a name")
    page.fill("input[name=licence]", "MIT")
    save(page)
    say(page).to_contain_text("letters, digits")
    expect(page.locator("input[name=licence]")).to_have_value("MIT")

    page.fill("input[name=name]", "acme/form")
    page.fill("input[name=reason]", "for the browser")
    save(page)
    page.goto("/admin/registry/event/?q=acme/form")
    say(page).to_contain_text("for the browser")
    say(page).to_contain_text("user:ada")


def test_a_name_that_is_taken_is_an_error_of_the_form(page: Page, site: Site) -> None:
    site.manage("model_register", "acme/taken", "1", write_checkpoint(site.data / "taken").as_uri())

    page.goto("/admin/registry/model/add/")
    page.fill("input[name=name]", "acme/taken")
    save(page)

    say(page).to_contain_text("There is a model 'acme/taken' already.")


def test_an_import_is_confirmed_runs_and_shows_facts_and_files(page: Page, site: Site) -> None:
    site.version("imported", ready=False)
    open_version(page, "imported")
    press(page, "Import files")
    expect(page.get_by_text("Import the files of imported@1?")).to_be_visible()
    confirm(page, "Import", "wanted")
    say(page).to_contain_text("imported@1 is being fetched.")

    site.manage("rqworker", "ops", "--burst")

    # The page looks again by itself.
    say(page).to_contain_text("LlamaForCausalLM", timeout=20_000)
    page.get_by_text("Files", exact=True).first.click()
    say(page).to_contain_text("model-1.safetensors")


def test_cancelling_a_confirmation_changes_nothing(page: Page, site: Site) -> None:
    site.version("cancelled", ready=False)
    open_version(page, "cancelled")
    press_below_more(page, "Archive")
    press(page, "Cancel")

    assert json.loads(site.manage("model_show", "cancelled", "--json"))["state"] == "registered"


def test_a_promote_moves_the_default_and_says_so(page: Page, site: Site) -> None:
    site.version("promoted")
    open_version(page, "promoted")
    press(page, "Promote")
    confirm(page, "Promote", "it is better")
    say(page).to_contain_text("promoted@production means promoted@1 now.")

    page.goto("/admin/registry/event/?q=promoted@production")
    say(page).to_contain_text("it is better")


def test_a_refused_load_says_why_in_words(page: Page, site: Site) -> None:
    site.version("homeless")
    open_version(page, "homeless")
    press(page, "Load")
    confirm(page, "Load")

    say(page).to_contain_text("homeless@1 cannot be loaded")


def test_what_an_alias_names_is_not_archived_and_the_refusal_says_by_which(page: Page, site: Site) -> None:
    site.version("named")
    site.manage("model_promote", "named@1")
    open_version(page, "named")
    press_below_more(page, "Archive")
    confirm(page, "Archive")

    say(page).to_contain_text("named@1 is what named@production means; promote another version first.")


def test_who_saves_an_alias_second_learns_who_was_first(
    page: Page, session: BrowserContext, site: Site
) -> None:
    site.version("raced")
    site.manage("model_promote", "raced@1")
    site.manage("model_register", "raced", "2", (site.data / "checkpoints" / "raced").as_uri())
    site.manage("model_import", "raced@2")
    site.manage("rqworker", "ops", "--burst")
    page.goto("/admin/registry/alias/?q=raced")
    page.click("#result_list a:has-text('raced@production')")
    site.manage("model_promote", "raced@2", "--reason", "first")

    save(page)

    say(page).to_contain_text("raced@production is at revision 2, not 1, and means 2 now")


def test_a_deleted_model_is_gone_with_its_versions(page: Page, site: Site) -> None:
    site.version("doomed")
    page.goto("/admin/registry/model/?q=doomed")
    page.click("#result_list a:has-text('doomed')")
    press(page, "Delete model")
    say(page).to_contain_text("doomed@1")
    page.click("button:has-text('Yes'), input[value*='Yes']")

    say(page).to_contain_text("deleted successfully")
    page.goto("/admin/registry/event/?q=doomed")
    say(page).to_contain_text("model.deleted")


def test_an_access_key_is_shown_once_works_and_ends_with_its_revocation(page: Page, site: Site) -> None:
    page.goto("/admin/mmserve/accesskey/add/")
    page.fill("input[name=name]", "browser")
    save(page)
    raw = page.locator("#raw-key").inner_text().strip()
    headers = {"Authorization": f"Bearer {raw}"}
    assert httpx.get(f"{site.url}/v1/models", headers=headers).status_code == 200

    press(page, "I have copied it")
    assert raw not in page.content()
    digest = site.shell(
        "from mmserve.models import *; print(AccessKey.objects.get(name='browser').digest)"
    ).strip()
    assert digest not in page.content()
    press(page, "Revoke")
    assert digest not in page.url
    confirm(page, "Revoke", "lost")
    say(page).to_contain_text("is revoked.")
    assert httpx.get(f"{site.url}/v1/models", headers=headers).status_code == 401

    press(page, "Revoke")
    confirm(page, "Revoke")
    say(page).to_contain_text("is revoked already")


SEED = """
from django.utils import timezone
from datetime import timedelta
import msgspec
from inference.actions import ensure_deployment
from inference.models import Device, LoadObservation, Node, Replica
from inference.notify import connection
from inference.protocol import ReplicaBeat, beat_key
from registry.models import ModelVersion
node = Node.objects.create(name="laptop", last_seen=timezone.now() + timedelta(hours=1), template_ready=True)
device = Device.objects.create(node=node, name="cpu:0", kind="CPU", total_bytes=2**34, budget_bytes=2**33)
version = ModelVersion.objects.get(model__name="served")
deployment = ensure_deployment(version, actor="tests")
deployment.replicas = 1
deployment.save()
row = Replica.objects.create(
    deployment=deployment, device=device, state="ready", reserved_bytes=2**32, load_seconds=3.5,
    log_tail="INFO weights loaded <b>ok</b>",
)
LoadObservation.objects.create(
    version=version, replica=row, device_kind="CPU", options_key="k", error=0.123,
    predicted={"weights": 2**30, "kv_cache": 2**29, "context": 2**28, "runtime": 2**28},
    measured={"weights": 2**30, "kv_cache": 2**29, "runtime": 2**28},
)
beat = ReplicaBeat(replica=str(row.id), deployment=deployment.name, worker="w", state="ready", running=17, waiting=3,
                   kv_usage=0.42, tokens_per_s=321.5, ttft_s=0.126, max_streams=64, form="compiled")
connection().set(beat_key(str(row.id)), msgspec.json.encode(beat))
print(row.id, node.pk, deployment.pk)
"""


@pytest.fixture(scope="module")
def served(site: Site) -> dict[str, str]:
    """Rows and a beat as a node and its engine would leave them."""
    site.version("served")
    replica, node, deployment = site.shell(SEED).split()
    return {"replica": replica, "node": node, "deployment": deployment}


def test_replicas_show_their_live_state_and_their_log(page: Page, served: dict[str, str]) -> None:
    page.goto("/admin/inference/replica/")
    for text in ("17 running, 3 waiting", "42%", "321.5", "126 ms"):
        say(page).to_contain_text(text)

    page.goto(f"/admin/inference/replica/{served['replica']}/change/")
    say(page).to_contain_text("INFO weights loaded <b>ok</b>")
    say(page).to_contain_text("compiled")


def test_memory_pages_show_what_was_predicted_and_what_was_measured(
    page: Page, served: dict[str, str]
) -> None:
    page.goto("/admin/inference/loadobservation/")
    for text in ("2.0 GiB", "1.8 GiB", "+12.3%"):
        say(page).to_contain_text(text)
    page.locator("#result_list tbody a").first.click()
    for text in ("KV cache", "CUDA context", "512.0 MiB", "+12.3%"):
        say(page).to_contain_text(text)

    page.goto(f"/admin/inference/deployment/{served['deployment']}/change/")
    for text in ("Estimated", "Last load", "1.0 GiB"):
        say(page).to_contain_text(text)


def test_nodes_show_the_memory_of_their_devices(page: Page, served: dict[str, str]) -> None:
    page.goto("/admin/inference/node/")
    say(page).to_contain_text("cpu:0: 4.0 GiB of 8.0 GiB")


def test_the_dashboard_sums_up_models_memory_and_events(page: Page, served: dict[str, str]) -> None:
    page.goto("/admin/")
    for text in ("served", "laptop/cpu:0", "4.0 GiB of 8.0 GiB", "deployment.created"):
        say(page).to_contain_text(text)


def test_an_unload_is_confirmed_with_its_reason(page: Page, served: dict[str, str], site: Site) -> None:
    page.goto(f"/admin/inference/deployment/{served['deployment']}/change/")
    press(page, "Unload")
    confirm(page, "Unload", "night")
    say(page).to_contain_text("is being unloaded.")

    assert "night" in site.manage("event_list", "--kind", "deployment.unload")


def test_engine_options_are_checked_by_the_action(page: Page, served: dict[str, str]) -> None:
    page.goto(f"/admin/inference/deployment/{served['deployment']}/change/")
    page.fill("input[name=context_length]", "65")
    save(page)

    say(page).to_contain_text("65 tokens asked for, the model was made for 64")


def test_a_draft_model_is_chosen_among_the_ready_versions(
    page: Page, served: dict[str, str], site: Site
) -> None:
    site.version("draft-ready")
    site.version("draft-unfetched", ready=False)
    page.goto(f"/admin/inference/deployment/{served['deployment']}/change/")
    page.select_option("select[name=speculation]", "draft_model")
    save(page)
    say(page).to_contain_text("needs a version that guesses")

    page.click(".field-draft .select2-selection")
    page.fill(".select2-container--open .select2-search__field", "draft-")
    expect(page.locator(".select2-results__option")).to_have_text(["draft-ready@1"])
    page.get_by_role("option", name="draft-ready@1", exact=True).click()
    save(page)
    say(page).to_contain_text("was changed successfully")
    assert "draft-ready@1" in site.manage("event_list", "--kind", "deployment.configured", "--json")


def test_every_page_of_the_sidebar_opens(page: Page, served: dict[str, str]) -> None:
    page.goto("/admin/")
    links = page.locator("#nav-sidebar a[href^='/admin/']").evaluate_all(
        "found => found.map(one => one.href)"
    )
    assert len(links) >= 12
    for link in links:
        answer = page.goto(link)
        assert answer is not None
        assert answer.status == 200, link
        assert "<div" not in page.inner_text("body"), link


def test_a_replicas_events_and_nodes_cannot_be_changed(page: Page, served: dict[str, str]) -> None:
    for path in ("inference/replica", "inference/node", "registry/event"):
        answer = page.goto(f"/admin/{path}/add/")
        assert answer is not None
        assert answer.status == 403, path


def test_staff_without_permissions_sees_nothing_and_does_nothing(
    browser: Browser, site: Site, served: dict[str, str]
) -> None:
    site.shell(
        "from django.contrib.auth.models import User;"
        f"User.objects.create_user('bob', password='{PASSWORD}', is_staff=True)"
    )
    with browser.new_context(base_url=site.url) as context:
        page = context.new_page()
        log_in(page, "bob")
        expect(page.get_by_text("Recent events")).to_have_count(0)
        for path in (
            "registry/model/",
            "mmserve/accesskey/",
            f"inference/deployment/{served['deployment']}/load/",
            f"inference/replica/{served['replica']}/change/",
        ):
            answer = page.goto(f"/admin/{path}")
            assert answer is not None
            assert answer.status == 403, path
