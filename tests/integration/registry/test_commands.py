"""Commands: data on stdout, refusals in words with their exit codes."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.utils import timezone

from inference.models import Deployment, Device, Node, Replica, ReplicaState
from mmserve import doctor
from mmserve.management.commands import model_import, model_load
from mmserve.models import AccessKey
from registry import actions
from registry.models import Alias, Event, Model, ModelVersion, VersionFile, VersionState

Versions = Callable[..., ModelVersion]


def run(name: str, *args: str, **options: Any) -> Any:
    """The command's JSON."""
    out = io.StringIO()
    call_command(name, *args, "--json", stdout=out, **options)
    return json.loads(out.getvalue())


def refused(name: str, *args: str) -> tuple[int, str]:
    """Exit code and words of a command that refuses."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command(name, *args, stdout=out, stderr=err)
    assert out.getvalue() == ""
    return int(str(ended.value.code)), err.getvalue().strip()


@pytest.fixture
def ada(db: None) -> User:
    return User.objects.create_superuser("ada", password="correct horse")


@pytest.fixture
def node(db: None) -> Node:
    from django.utils import timezone

    row = Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
    Device.objects.create(node=row, name="cpu:0", kind="cpu", total_bytes=2**36, budget_bytes=2**35)
    return row


def test_model_register_makes_the_model_and_the_version(checkpoint: Any, db: None) -> None:
    found = run("model_register", "acme/echo", "1", checkpoint.as_uri(), "--reason", "first", licence="MIT")

    assert (found["id"], found["state"], found["status"]) == ("acme/echo@1", "registered", "unloaded")
    assert Model.objects.get().licence == "MIT"
    event = Event.objects.first()
    assert event is not None
    assert event.actor.startswith("command:")
    assert event.reason == "first"


def test_model_register_takes_what_a_version_has(version_of: Versions, checkpoint: Any) -> None:
    source = checkpoint.as_uri()
    given = (
        "--tag",
        "eu",
        "--tag",
        "tier=gold",
        "--price-input",
        "0.15",
        "--engine-options",
        '{"max_streams": 4}',
    )

    run("model_register", "acme/new", "1", source, "--team", "search", *given)

    shown = run("model_show", "acme/new@1")
    assert (shown["tags"], shown["price_input"]) == (["eu", "tier=gold"], "0.150000")
    assert shown["engine_options"] == {"max_streams": 4}
    assert Model.objects.get(name="acme/new").team == "search"
    assert refused("model_register", "acme/new", "2", source, "--team", "ads")[0] == 4
    assert refused("model_register", "acme/new", "2", source, "--price-input", "dear")[0] == 5
    assert refused("model_register", "acme/new", "2", source, "--engine-options", "{")[0] == 5


def test_model_register_of_a_wrong_source_leaves_no_model_behind(db: None) -> None:
    assert refused("model_register", "acme/echo", "1", "ftp://x")[0] == 5
    assert not Model.objects.exists()


def test_model_register_twice_is_refused(version_of: Versions, checkpoint: Any) -> None:
    version_of("1")

    code, words = refused("model_register", "acme/echo", "1", checkpoint.as_uri())

    assert (code, words) == (4, "There is a version acme/echo@1 already.")


@pytest.mark.django_db(transaction=True)
def test_model_import_queues_the_job_and_waits_with_a_bound(version_of: Versions, redis_url: str) -> None:
    version_of("1", VersionState.REGISTERED)

    assert run("model_import", "acme/echo@1")["state"] == "fetching"
    code, words = refused("model_import", "acme/echo@1")
    assert code == 4
    assert "is fetching" in words
    ModelVersion.objects.update(state=VersionState.FAILED)
    code, words = refused("model_import", "acme/echo@1", "--wait", "--timeout", "0")
    assert code == 1
    assert "not ready after 0 s" in words


@pytest.mark.django_db(transaction=True)
def test_an_import_that_is_waited_for_ends_with_its_bytes(
    version_of: Versions,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    version = version_of("1", VersionState.REGISTERED)

    def job(_: float) -> None:
        """All that happens while the command waits."""
        VersionFile.objects.create(version=version, path="a", size_bytes=3 * 2**20, sha256="0" * 64)
        ModelVersion.objects.update(state=VersionState.READY, progress={})

    monkeypatch.setattr(model_import, "sleep", job)

    assert run("model_import", "acme/echo@1", "--wait")["state"] == "ready"
    told = capsys.readouterr().err
    assert "3.0/3.0 MiB" in told
    assert "?" not in told


def test_model_list_shows_every_version_in_few_queries(
    version_of: Versions, django_assert_max_num_queries: Any
) -> None:
    for number in range(5):
        version_of(str(number))

    with django_assert_max_num_queries(5):
        found = run("model_list")

    assert {row["id"] for row in found} == {f"acme/echo@{number}" for number in range(5)}
    assert {row["status"] for row in found} == {"unloaded"}


def test_model_show_knows_names_versions_and_aliases(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="tests")
    version_of("2")

    for asked, found in (("acme/echo", "1"), ("acme/echo@production", "1"), ("acme/echo@2", "2")):
        assert run("model_show", asked)["id"] == f"acme/echo@{found}"


def test_an_unknown_model_is_exit_code_3_with_near_names(model: Model) -> None:
    assert refused("model_show", "acme/ecko") == (3, "There is no model 'acme/ecko'. Did you mean acme/echo?")
    assert refused("model_show", "acme/echo@9")[0] == 3
    assert refused("model_show", "acme/echo") == (3, "acme/echo has no version yet.")


def test_a_bare_name_of_several_versions_without_a_default_is_not_guessed(version_of: Versions) -> None:
    version_of("1")
    version_of("2")

    code, words = refused("model_show", "acme/echo")

    assert code == 3
    assert "has no default alias; name acme/echo@" in words


def test_model_promote_moves_the_alias_by_its_revision(version_of: Versions) -> None:
    version_of("1")
    version_of("2")
    found = run("model_promote", "acme/echo@1")
    assert found == {"alias": "acme/echo@production", "version": "1", "revision": 1, "default": True}
    run("model_promote", "acme/echo@2", "--expected-revision", "1", "--reason", "better")

    code, words = refused("model_promote", "acme/echo@1", "--expected-revision", "1")

    assert code == 4
    assert "means 2 now" in words
    assert Alias.objects.get().version.version == "2"


@pytest.mark.django_db(transaction=True)
def test_model_load_and_model_unload_set_what_is_wished(
    version_of: Versions, node: Node, redis_url: str
) -> None:
    version_of("1")
    assert refused("model_unload", "acme/echo") == (4, "acme/echo@1 was never loaded")

    assert run("model_load", "acme/echo")["status"] == "loading"
    assert Deployment.objects.get().replicas == 1
    assert run("model_unload", "acme/echo")["status"] == "unloaded"
    assert Deployment.objects.get().replicas == 0


def test_a_load_that_cannot_fit_says_the_figures(version_of: Versions, node: Node) -> None:
    version_of("1")
    Device.objects.update(budget_bytes=2**20)

    code, words = refused("model_load", "acme/echo")

    assert code == 4
    assert "cannot be loaded" in words


def test_key_create_prints_the_key_once_and_stores_its_digest(ada: User) -> None:
    found = run("key_create", "laptop", "--scope", "infer", "--scope", "manage", "--days", "1")

    key = AccessKey.objects.get()
    assert found["key"].startswith("mms-")
    assert found["key"] not in (key.digest, key.token_key)
    assert key.scopes == ["infer", "manage"]
    assert key.user == ada


def test_key_create_refuses_what_cannot_be(ada: User) -> None:
    assert refused("key_create", "x", "--days", "-1")[0] == 5
    assert refused("key_create", "x", "--max-concurrency", "0")[0] == 5
    assert refused("key_create", "x" * 101)[0] == 5
    assert refused("key_create", "x", "--user", "nobody")[0] == 3
    with pytest.raises(CommandError):
        call_command("key_create", "x", "--scope", "everything")


def test_key_revoke_takes_an_id_or_first_characters_or_a_name(ada: User) -> None:
    made = [run("key_create", name) for name in ("a", "b", "c", "c")]
    first_characters = AccessKey.objects.get(name="b").token_key

    run("key_revoke", made[0]["id"])
    run("key_revoke", first_characters)

    assert refused("key_revoke", "a") == (4, f"a ({made[0]['key'][:15]}…) is revoked already")
    assert refused("key_revoke", "c")[0] == 4
    assert refused("key_revoke", "nobody")[0] == 3
    assert {row["name"] for row in run("key_list") if row["revoked_at"]} == {"a", "b"}


def test_key_list_never_shows_a_digest(ada: User) -> None:
    run("key_create", "laptop")

    listed = json.dumps(run("key_list"))

    assert AccessKey.objects.get().digest not in listed


def test_event_list_is_the_timeline(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="user:ada", reason="go")

    found = run("event_list", "--subject", "acme/echo@production")

    assert [(row["kind"], row["actor"], row["reason"]) for row in found] == [
        ("alias.promoted", "user:ada", "go")
    ]
    assert len(run("event_list", "--limit", "1")) == 1
    assert run("event_list", "--kind", "nothing") == []
    assert refused("event_list", "--limit", "0")[0] == 5


def test_doctor_finds_all_well(db: None, redis_url: str, settings: Any, tmp_path: Any) -> None:
    settings.DATA_DIR = tmp_path
    found = run("doctor", "--no-engine")

    assert {row["what"] for row in found} == {
        "settings",
        "database",
        "migrations",
        "redis",
        "disk",
        "engine template",
    }
    assert all(row["good"] for row in found)


def test_doctor_ends_with_1_and_says_what_is_wrong(db: None, settings: Any) -> None:
    settings.REDIS_URL = "unix:///nowhere/redis.sock"
    settings.SECRET_KEY = "weak"
    out = io.StringIO()

    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--no-engine", "--json", stdout=out)

    wrong = {row["what"]: row["found"] for row in json.loads(out.getvalue()) if not row["good"]}
    assert ended.value.code == 1
    assert set(wrong) == {"redis", "settings"}
    assert "DJANGO_SECRET_KEY" in wrong["settings"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("state", "said"),
    [
        (ReplicaState.READY, "ready"),
        (ReplicaState.FAILED, "acme/echo@1 does not serve: its engine died"),
        (ReplicaState.LOADING, "acme/echo@1 does not serve after 0.5 s; the load goes on."),
    ],
)
def test_model_load_waits_until_it_serves_or_cannot(
    version_of: Versions,
    node: Node,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    state: ReplicaState,
    said: str,
) -> None:
    version_of("1")

    def engine(_: float) -> None:
        """What happens while the command waits."""
        time.sleep(0.05)
        if not Replica.objects.exists():
            Replica.objects.create(
                deployment=Deployment.objects.get(),
                device=Device.objects.get(),
                state=state,
                reason="its engine died",
                reserved_bytes=0,
            )

    monkeypatch.setattr(model_load, "sleep", engine)
    err = io.StringIO()
    arguments = (
        "model_load",
        "acme/echo",
        "--wait",
        "--timeout",
        "0.5" if state == ReplicaState.LOADING else "30",
    )
    if state == ReplicaState.READY:
        assert run(*arguments, stderr=err)["status"] == said
        assert err.getvalue().startswith("acme/echo@1: waiting for a node")
    else:
        code, words = refused(*arguments)
        assert code == (4 if state == ReplicaState.FAILED else 1)
        assert words.splitlines()[-1] == said


@pytest.mark.django_db(transaction=True)
def test_where_all_was_stopped_nothing_is_said_to_run(
    version_of: Versions, node: Node, redis_url: str
) -> None:
    version_of("1")
    assert run("model_load", "acme/echo")["status"] == "loading"
    assert template()["found"] == "warm on 1 node(s)"

    Node.objects.update(last_seen=timezone.now() - timedelta(minutes=4))

    [row] = run("model_list")
    assert row["status"] == "unloaded"
    assert row["reason"] == "No node runs; the last one was heard of 4 minutes ago."
    assert run("model_show", "acme/echo")["status"] == "unloaded"
    assert template() == {
        "what": "engine template",
        "good": True,
        "found": "no node runs; the last one was heard of 4 minutes ago",
    }

    Node.objects.create(name="other", last_seen=timezone.now(), template_ready=False)
    assert run("model_list")[0]["status"] == "loading"
    assert template()["found"] == "not warm on other: loads are slow; not heard of: here"


def template() -> Any:
    """What doctor finds of the nodes."""
    out = io.StringIO()
    with suppress(SystemExit):
        call_command("doctor", "--no-engine", "--json", stdout=out)
    return next(row for row in json.loads(out.getvalue()) if row["what"] == "engine template")


def test_doctor_imports_vllm_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")

    assert doctor._vllm() == doctor.Finding(what="vllm", good=False, found="exit status 1")


def test_a_table_is_for_people(version_of: Versions) -> None:
    version_of("1")
    out = io.StringIO()

    call_command("model_list", stdout=out)

    assert out.getvalue().splitlines()[0].split() == [
        "ID",
        "STATUS",
        "ALIASES",
        "CAPABILITIES",
        "CONTEXT_LENGTH",
        "REASON",
    ]


def test_a_version_goes_to_the_archive_and_back(version_of: Versions) -> None:
    version_of("1")
    assert run("model_archive", "acme/echo@1", reason="old")["state"] == "archived"
    assert refused("model_archive", "acme/echo@1")[0] == 4
    assert run("model_restore", "acme/echo@1")["state"] == "ready"
    assert refused("model_restore", "acme/echo@9")[0] == 3


def test_a_fetch_is_asked_for_and_cancelled(version_of: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    version_of("1", VersionState.REGISTERED)
    assert run("model_fetch", "acme/echo@1")["state"] == "fetching"
    assert refused("model_fetch", "acme/echo@1")[0] == 4
    assert run("model_cancel", "acme/echo@1")["state"] == "failed"
    assert refused("model_cancel", "acme/echo@1")[0] == 4


def test_a_duplicate_with_other_options(version_of: Versions) -> None:
    version_of("1")
    made = run("model_duplicate", "acme/echo@1", "2", engine_options='{"max_streams": 4}')
    assert (made["id"], made["state"]) == ("acme/echo@2", "ready")
    assert refused("model_duplicate", "acme/echo@1", "2")[0] == 4
    assert refused("model_duplicate", "acme/echo@1", "3", "--engine-options", "{")[0] == 5
    assert refused("model_duplicate", "acme/echo@1", "3", "--engine-options", '{"colour": 1}')[0] == 5


def test_roll_back_and_what_was_meant_before(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="tests")
    assert refused("model_rollback", "acme/echo")[0] == 4
    actions.promote(version_of("2"), actor="tests")
    assert run("model_rollback", "acme/echo", reason="bad")["version"] == "1"
    assert refused("model_rollback", "acme/echo@nobody")[0] == 3
    assert refused("model_rollback", "nobody")[0] == 3

    found = run("model_history", "acme/echo")
    assert (found["aliases"], found["default"]) == ({"production": "1"}, "production")
    assert found["events"][0]["reason"] == "bad"
    assert found["events"][0]["data"]["to"] == "1"
    out = io.StringIO()
    call_command("model_history", "acme/echo", "--limit", "1", stdout=out)
    assert out.getvalue().splitlines()[-2].split() == ["AT", "KIND", "SUBJECT", "ACTOR", "CHANGE", "REASON"]
    assert out.getvalue().endswith("  2 → 1   bad\n")
    assert run("model_history", "acme/echo", at="2020-01-01T00:00")["aliases"] == {}
    assert refused("model_history", "acme/echo", "--at", "noon")[0] == 5
    assert refused("model_history", "acme/echo", "--limit", "0")[0] == 5
    assert refused("model_history", "nobody")[0] == 3


def test_aliases_versions_and_models_are_deleted(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="tests")
    version_of("2")
    assert refused("model_delete", "acme/echo@1")[0] == 4
    assert run("model_delete", "acme/echo@2", drain=True) == {"id": "acme/echo@2", "deleted": True}
    assert run("model_delete", "acme/echo@production")["deleted"] is True
    assert run("model_delete", "acme/echo", drain=True)["deleted"] is True
    assert not Model.objects.exists()
    assert refused("model_delete", "acme/echo")[0] == 3


def test_files_are_pinned_in_the_cache(version_of: Versions) -> None:
    version = version_of("1")
    ModelVersion.objects.filter(pk=version.pk).update(path="acme--echo/1")
    assert run("cache_pin", "acme/echo@1")["pinned"] is True
    assert run("cache_pin", "acme/echo@1", off=True)["pinned"] is False
    assert refused("cache_pin", "nobody")[0] == 3
    assert refused("cache_prune", "--keep-bytes", "-1")[0] == 5


def test_a_plan_says_what_would_be_taken_and_where_it_fits(version_of: Versions, node: Node) -> None:
    version = version_of("1")
    facts = {"layers": 2, "kv_heads": 2, "head_size": 64, "weight_bytes": 10**9, "parameters": 5 * 10**8}
    ModelVersion.objects.filter(pk=version.pk).update(facts={**facts, "context_length": 1000})

    found = run("model_plan", "acme/echo@1", streams=3)
    assert (found["kv_bytes_a_token"], found["streams"], found["fits"]) == (1024, 3, True)
    assert found["device"] == "here/cpu:0"
    assert found["total_bytes"] == sum(found["parts"].values())
    assert run("model_plan", "acme/echo@1", tensor_parallel=2)["parts"]["weights"] == 5 * 10**8
    out = io.StringIO()
    call_command("model_plan", "acme/echo@1", stdout=out)
    names = [line.split()[0] for line in out.getvalue().splitlines()]
    assert "parts" not in names
    assert names.index("weights") < names.index("devices")
    drafted = run("model_plan", "acme/echo@1", streams=3, draft="acme/echo@1")
    assert (drafted["draft"], drafted["kv_bytes_a_token"]) == ("acme/echo@1", 2048)
    assert drafted["parts"]["draft_weights"] == 10**9
    assert refused("model_plan", "acme/echo@1", "--draft", "nobody")[0] == 5
    assert refused("model_plan", "acme/echo@1", "--streams", "0")[0] == 5
    assert refused("model_plan", "nobody")[0] == 3
