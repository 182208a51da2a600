"""What a catalogue has besides names: tags, links, options, duplicates, cancelled fetches, history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmserve.errors import Conflict, InvalidRequest
from registry import actions, cache, history, jobs, store
from registry.models import PUBLISHED, Event, Model, ModelVersion, VersionState

Versions = Callable[..., ModelVersion]

# Every action on a version, and what it makes of it from the states in which it is possible.
MOVES: dict[str, dict[str, str]] = {
    "import_version": dict.fromkeys(("registered", "failed"), "fetching"),
    "finish_import": {"fetching": "ready"},
    "cancel_import": {"fetching": "failed"},
    "archive_version": dict.fromkeys(("registered", "failed", "ready"), "archived"),
    "restore_version": {"archived": "ready"},
}


@pytest.mark.parametrize("state", list(VersionState))
@pytest.mark.parametrize("move", list(MOVES))
def test_states_change_along_the_table_and_each_change_is_an_event(
    version_of: Versions, monkeypatch: pytest.MonkeyPatch, move: str, state: str
) -> None:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    version = version_of("1")
    ModelVersion.objects.filter(pk=version.pk).update(
        state=state, progress={"at": timezone.now().isoformat()}
    )
    version.refresh_from_db()
    before = Event.objects.count()
    expected = MOVES[move].get(state)

    if expected is None:
        with pytest.raises(Conflict, match="acme/echo@1"):
            getattr(actions.versions, move)(version, actor="tests")
    else:
        getattr(actions.versions, move)(version, actor="tests")

    version.refresh_from_db()
    assert version.state == (expected or state)
    assert Event.objects.count() == before + (expected is not None)
    assert expected is None or expected in actions.TRANSITIONS[state]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.sampled_from(list(MOVES)), max_size=12))
def test_no_sequence_of_actions_leaves_the_table(
    version_of: Versions, monkeypatch: pytest.MonkeyPatch, moves: list[str]
) -> None:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    ModelVersion.objects.all().delete()
    version = version_of("1", VersionState.REGISTERED)
    for move in moves:
        before = version.state
        try:
            getattr(actions.versions, move)(version, actor="tests")
        except Conflict:
            assert ModelVersion.objects.get(pk=version.pk).state == before
            version.refresh_from_db()
        else:
            assert version.state in actions.TRANSITIONS[before]


def test_a_model_has_team_tags_and_links(model: Model) -> None:
    links = [{"title": "card", "url": "https://example.org/card"}]

    actions.update_model(model, actor="tests", team="search", tags=["eu", "tier=gold"], links=links)

    model.refresh_from_db()
    assert (model.team, model.tags, model.links) == ("search", ["eu", "tier=gold"], links)
    assert model.slug == "acme--echo"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tags", "eu"),
        ("tags", ["eu", "eu"]),
        ("tags", ["a b"]),
        ("tags", [7]),
        ("links", [{"title": "x", "url": "javascript:alert(1)"}]),
        ("links", [{"url": "https://example.org"}]),
        ("links", {}),
    ],
)
def test_wrong_tags_and_links_name_the_field(model: Model, field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        actions.update_model(model, actor="tests", **{field: value})

    assert refused.value.param == field


def test_engine_options_stay_once_a_version_is_ready(version_of: Versions) -> None:
    waiting, ready = version_of("1", VersionState.REGISTERED), version_of("2")

    actions.update_version(waiting, actor="tests", engine_options={"max_streams": 8})

    with pytest.raises(Conflict, match="engine_options cannot change; make a new version"):
        actions.update_version(ready, actor="tests", engine_options={"max_streams": 8})


@pytest.mark.parametrize(
    "options", [{"colour": 1}, {"max_streams": 0}, {"max_streams": "many"}, {"dtype": "int3"}]
)
def test_options_that_no_engine_could_begin_with_are_refused(
    version_of: Versions, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match=f"engine_options: '?{next(iter(options))}"):
        actions.duplicate_version(version_of("1"), "2", actor="tests", engine_options=options)


def imported(version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    actions.import_version(version, actor="tests")
    jobs.import_version(version.pk)
    version.refresh_from_db()
    return version


def test_a_duplicate_is_ready_at_once_and_shares_the_files(
    version_of: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = imported(version_of("1", VersionState.REGISTERED), monkeypatch)

    twin = actions.duplicate_version(original, "2", actor="tests", engine_options={"max_streams": 4})

    assert (twin.state, twin.facts, twin.engine_options) == ("ready", original.facts, {"max_streams": 4})
    assert twin.state in PUBLISHED
    manifests = [list(row.files.values_list("path", "sha256")) for row in (original, twin)]
    assert manifests[0] == manifests[1] != []


@pytest.mark.django_db(transaction=True)
def test_shared_files_go_with_the_last_version_that_has_them(
    version_of: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = imported(version_of("1", VersionState.REGISTERED), monkeypatch)
    twin = actions.duplicate_version(original, "2", actor="tests")
    folder = store.location(original.path)

    actions.delete_version(original, actor="tests")
    assert folder.is_dir()

    actions.delete_version(twin, actor="tests")
    assert not folder.exists()


def test_a_cancelled_fetch_is_failed_says_by_whom_and_its_job_stops(
    version_of: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = version_of("1", VersionState.REGISTERED)
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    actions.import_version(version, actor="tests")

    def cancelled_meanwhile(*args: Any) -> None:
        actions.cancel_import(ModelVersion.objects.get(pk=version.pk), actor="ada", reason="wrong model")

    monkeypatch.setattr(jobs, "read_facts", cancelled_meanwhile)
    with pytest.raises(Conflict):
        jobs.import_version(version.pk)

    version.refresh_from_db()
    assert (version.state, version.state_reason) == ("failed", "Cancelled by ada: wrong model.")


def test_history_says_what_an_alias_meant_at_a_time(model: Model, version_of: Versions) -> None:
    one, two = version_of("1"), version_of("2")
    before = timezone.now()
    actions.promote(one, actor="ada", reason="first")
    at_first = timezone.now()
    actions.promote(two, actor="bob", reason="better")
    actions.promote(two, actor="bob", alias="candidate")
    at_second = timezone.now()
    actions.rollback(model, actor="ada")
    actions.set_default_alias(model.aliases.get(name="candidate"), actor="ada")
    actions.delete_alias(model.aliases.get(name="production"), actor="ada")

    def meant(at: Any) -> tuple[dict[str, str], str | None]:
        found = history.meaning_at("acme/echo", at)
        return found.aliases, found.default

    assert meant(before) == ({}, None)
    assert meant(at_first) == ({"production": "1"}, "production")
    assert meant(at_second) == ({"production": "2", "candidate": "2"}, "production")
    assert meant(timezone.now()) == ({"candidate": "2"}, "candidate")


def test_a_deleted_model_keeps_its_history_and_a_new_one_begins_anew(
    model: Model, version_of: Versions
) -> None:
    actions.promote(version_of("1"), actor="ada")
    then = timezone.now()
    actions.delete_model(model, actor="ada")

    assert history.meaning_at("acme/echo", then).aliases == {"production": "1"}
    assert history.meaning_at("acme/echo", timezone.now()).aliases == {}


def test_names_that_differ_in_case_have_histories_of_their_own(model: Model, version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="ada")
    other = actions.register_model("Acme/Echo", actor="bob")

    assert [event.subject for event in history.events_of("Acme/Echo")] == ["Acme/Echo"]
    assert history.meaning_at(other.name, timezone.now()).aliases == {}
    assert history.events_of("acme/echo").count() == 4


@pytest.mark.django_db(transaction=True)
def test_a_name_as_long_as_it_may_be_is_served_to_the_end(
    db: None, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    model = actions.register_model("/".join(["a"] * 94) + "/bc", actor="tests")
    version = actions.register_version(model, "v" * 100, checkpoint.as_uri(), actor="tests")
    actions.import_version(version, actor="tests")

    assert jobs.import_version(version.pk) == "ready"
    version.refresh_from_db()
    assert len(cache.entry_name(version)) < 240
    actions.promote(version, actor="tests", alias="p" * 100)
    with pytest.raises(InvalidRequest, match="at most 190 characters"):
        actions.register_model("a" * 191, actor="tests")
