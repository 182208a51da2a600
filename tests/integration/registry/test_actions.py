"""What may be done to the registry, and what is refused in which words."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from mmserve.errors import Conflict, InvalidRequest, NotFound, Unavailable
from registry import actions
from registry.models import Alias, Event, Model, ModelVersion, VersionState
from registry.revision import bump, configuration_changed, current

Versions = Callable[..., ModelVersion]


def last_event() -> Event:
    found = Event.objects.first()
    assert found is not None
    return found


def test_registering_writes_an_event_and_the_next_revision(db: None) -> None:
    before = current()

    actions.register_model("acme/echo", actor="user:ada", reason="for the demo", licence="MIT")

    event = last_event()
    assert (event.kind, event.subject, event.actor, event.reason) == (
        "model.registered",
        "acme/echo",
        "user:ada",
        "for the demo",
    )
    assert event.revision == current() == before + 1
    assert event.data == {"licence": "MIT"}


def test_a_refused_action_leaves_neither_event_nor_revision(model: Model) -> None:
    before = (current(), Event.objects.count())

    with pytest.raises(Conflict, match="a model 'acme/echo' already"):
        actions.register_model("acme/echo", actor="tests")

    assert (current(), Event.objects.count()) == before


@pytest.mark.parametrize("name", ["", "auto", "a b", "a@b", "/a", "a/", "a//b", "-a", "ä", "x" * 201, "a\n"])
def test_a_name_that_no_client_could_say_is_refused(db: None, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        actions.register_model(name, actor="tests")

    assert refused.value.param == "name"


def test_what_describes_a_model_changes_and_its_name_does_not(model: Model) -> None:
    actions.update_model(model, actor="tests", description="better")

    assert Model.objects.get().description == "better"
    assert last_event().data == {"description": "better"}
    with pytest.raises(InvalidRequest, match="name cannot be changed"):
        actions.update_model(model, actor="tests", name="other")


def test_a_change_that_changes_nothing_is_no_event(model: Model) -> None:
    before = current()

    actions.update_model(model, actor="tests", description=model.description)

    assert current() == before


def test_a_version_cannot_be_registered_twice(version_of: Versions) -> None:
    version_of("1")

    with pytest.raises(Conflict, match="a version acme/echo@1 already"):
        version_of("1")


def test_a_version_and_an_alias_never_share_a_name(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="tests", alias="stable")

    with pytest.raises(Conflict, match="is an alias already"):
        version_of("stable")
    with pytest.raises(Conflict, match="is a version already"):
        actions.promote(ModelVersion.objects.get(version="1"), actor="tests", alias="1")


def test_a_published_version_is_immutable(version_of: Versions) -> None:
    version = version_of("1")
    for field, value in {
        "source_uri": "file:///x",
        "path": "x",
        "facts": {"layers": 2},
        "version": "2",
    }.items():
        changed = ModelVersion.objects.get(pk=version.pk)
        setattr(changed, field, value)
        with pytest.raises(Conflict, match=f"its {field} cannot change"):
            changed.save()
    with pytest.raises(InvalidRequest, match="source_uri cannot be changed"):
        actions.update_version(version, actor="tests", source_uri="file:///x")


def test_the_price_of_a_published_version_changes(version_of: Versions) -> None:
    version = version_of("1")

    actions.update_version(version, actor="tests", price_input="0.15")

    assert last_event().data == {"price_input": {"from": None, "to": "0.15"}}
    with pytest.raises(InvalidRequest) as refused:
        actions.update_version(version, actor="tests", price_output=-1)
    assert refused.value.param == "price_output"


@pytest.mark.parametrize("state", [s for s in VersionState if s != VersionState.READY])
def test_only_a_ready_version_is_promoted(version_of: Versions, state: str) -> None:
    with pytest.raises(Conflict, match=f"is {state}; only a ready version"):
        actions.promote(version_of("1", state), actor="tests")


def test_the_first_promote_creates_the_default_alias_production(version_of: Versions) -> None:
    alias = actions.promote(version_of("1"), actor="tests")

    assert (alias.name, alias.is_default, alias.revision) == ("production", True, 1)


def test_a_promote_moves_the_default_alias_and_says_from_where_to_where(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="tests")

    alias = actions.promote(version_of("2"), actor="user:ada", reason="better", expected_revision=1)

    assert (alias.version.version, alias.revision) == ("2", 2)
    assert last_event().data == {"from": "1", "to": "2", "revision": 2}


def test_promoting_what_is_promoted_changes_nothing(version_of: Versions) -> None:
    version = version_of("1")
    actions.promote(version, actor="tests")
    before = current()

    assert actions.promote(version, actor="tests").revision == 1
    assert current() == before


def test_the_loser_of_a_promote_learns_who_moved_it_where(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="tests")
    actions.promote(version_of("2"), actor="user:ada", expected_revision=1)

    with pytest.raises(Conflict, match=r"at revision 2, not 1, and means 2 now: user:ada moved it at"):
        actions.promote(version_of("3"), actor="user:bob", expected_revision=1)

    assert Alias.objects.get().version.version == "2"


def test_an_alias_that_should_not_exist_yet_is_not_moved(version_of: Versions) -> None:
    actions.promote(version_of("1"), actor="tests")

    with pytest.raises(Conflict, match="at revision 1, not 0"):
        actions.promote(version_of("2"), actor="tests", expected_revision=0)
    with pytest.raises(Conflict, match="does not exist"):
        actions.promote(
            ModelVersion.objects.get(version="2"), actor="tests", alias="beta", expected_revision=3
        )


def test_rolling_back_again_and_again_goes_ever_further_back(version_of: Versions) -> None:
    for name in ("1", "2", "3"):
        actions.promote(version_of(name), actor="tests")
    model = Model.objects.get()

    assert actions.rollback(model, actor="tests").version.version == "2"
    assert actions.rollback(model, actor="tests").version.version == "1"
    with pytest.raises(Conflict, match="has not meant another version before 1"):
        actions.rollback(model, actor="tests")


def test_a_rollback_to_a_version_that_cannot_serve_is_refused(version_of: Versions) -> None:
    first = version_of("1")
    actions.promote(first, actor="tests")
    actions.promote(version_of("2"), actor="tests")
    actions.archive_version(first, actor="tests")

    with pytest.raises(Conflict, match="meant acme/echo@1 before, which is archived now"):
        actions.rollback(Model.objects.get(), actor="tests")


def test_a_rollback_without_an_alias_is_not_found(model: Model) -> None:
    with pytest.raises(NotFound):
        actions.rollback(model, actor="tests")


def test_exactly_one_alias_is_the_default(version_of: Versions) -> None:
    version = version_of("1")
    actions.promote(version, actor="tests")
    beta = actions.promote(version, actor="tests", alias="beta")
    assert beta.is_default is False

    actions.set_default_alias(beta, actor="tests")

    assert {alias.name: alias.is_default for alias in Alias.objects.all()} == {
        "production": False,
        "beta": True,
    }


def test_the_default_alias_goes_last(version_of: Versions) -> None:
    version = version_of("1")
    production = actions.promote(version, actor="tests")
    beta = actions.promote(version, actor="tests", alias="beta")

    with pytest.raises(Conflict, match="make another alias the default first"):
        actions.delete_alias(production, actor="tests")
    actions.delete_alias(beta, actor="tests")
    actions.delete_alias(production, actor="tests")

    assert not Alias.objects.exists()


def test_a_version_that_an_alias_names_is_neither_archived_nor_deleted(version_of: Versions) -> None:
    version = version_of("1")
    actions.promote(version, actor="tests")

    for refuse in (actions.archive_version, actions.delete_version):
        with pytest.raises(Conflict, match="is what acme/echo@production means"):
            refuse(version, actor="tests")


def test_an_archived_version_comes_back_if_its_files_were_whole(version_of: Versions) -> None:
    version = version_of("1")
    actions.archive_version(version, actor="tests")
    actions.restore_version(version, actor="tests")
    assert ModelVersion.objects.get().state == VersionState.READY

    never = version_of("2", VersionState.FAILED)
    actions.archive_version(never, actor="tests")
    with pytest.raises(Conflict, match="never had its files"):
        actions.restore_version(never, actor="tests")


def test_a_state_that_somebody_else_changed_first_is_a_conflict(version_of: Versions) -> None:
    version = version_of("1", VersionState.REGISTERED)
    ModelVersion.objects.update(state=VersionState.ARCHIVED)

    with pytest.raises(Conflict, match="became archived meanwhile"):
        actions.import_version(version, actor="tests")


def test_whoever_serves_a_version_may_refuse_its_end(version_of: Versions) -> None:
    def refuse(version: ModelVersion, **_: Any) -> None:
        raise Conflict(f"{version.served_id} is served by replica-1")

    actions.version_retiring.connect(refuse)
    try:
        with pytest.raises(Conflict, match="served by replica-1"):
            actions.delete_model(version_of("1").model, actor="tests")
    finally:
        actions.version_retiring.disconnect(refuse)

    assert ModelVersion.objects.count() == 1


def test_a_model_goes_with_its_versions_and_aliases_and_its_events_stay(version_of: Versions) -> None:
    version = version_of("1")
    actions.promote(version, actor="tests")

    actions.delete_model(version.model, actor="tests", reason="over")

    assert (Model.objects.count(), ModelVersion.objects.count(), Alias.objects.count()) == (0, 0, 0)
    assert list(Event.objects.values_list("kind", flat=True)[:2]) == ["model.deleted", "version.deleted"]


def test_a_version_that_is_being_fetched_is_not_deleted_under_the_job(
    version_of: Versions, django_capture_on_commit_callbacks: Any
) -> None:
    version = version_of("1", VersionState.REGISTERED)
    actions.import_version(version, actor="tests")

    with pytest.raises(Conflict, match="is being fetched"):
        actions.delete_version(version, actor="tests")


def test_a_change_is_announced_once_it_is_committed(
    db: None, django_capture_on_commit_callbacks: Any
) -> None:
    heard: list[dict[str, Any]] = []

    def listen(**message: Any) -> None:
        heard.append(message)

    configuration_changed.connect(listen)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            number = bump("model.registered", "x", "tests")
            assert heard == []
    finally:
        configuration_changed.disconnect(listen)

    assert [(one["revision"], one["kind"], one["subject"]) for one in heard] == [
        (number, "model.registered", "x")
    ]


@pytest.mark.django_db(transaction=True)
def test_an_import_that_cannot_be_queued_is_failed_and_says_so(
    version_of: Versions, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.RQ_QUEUES["ops"], "URL", "unix:///nowhere/redis.sock")
    version = version_of("1", VersionState.REGISTERED)

    with pytest.raises(Unavailable, match="Redis does not answer"):
        actions.import_version(version, actor="tests")

    version.refresh_from_db()
    assert version.state == VersionState.FAILED
    assert "could not be queued" in version.state_reason


@pytest.mark.django_db(transaction=True)
def test_of_many_who_promote_at_once_exactly_one_wins(version_of: Versions) -> None:
    actions.promote(version_of("0"), actor="tests")
    rows = [version_of(str(number)) for number in range(1, 6)]
    start = threading.Barrier(len(rows))
    won: list[str] = []
    lost: list[str] = []

    def promote(version: ModelVersion) -> None:
        start.wait(10)
        try:
            actions.promote(version, actor=f"user:{version.version}", expected_revision=1)
            won.append(version.version)
        except Conflict as error:
            lost.append(error.message)
        finally:
            connection.close()

    threads = [threading.Thread(target=promote, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(won) == 1
    assert len(lost) == len(rows) - 1
    assert all(f"user:{won[0]} moved it" in message for message in lost)
    assert Alias.objects.get().version.version == won[0]


@pytest.mark.django_db(transaction=True)
def test_revisions_have_no_gap_and_no_double_under_concurrency() -> None:
    before = current()

    def write() -> None:
        try:
            for number in range(5):
                with transaction.atomic():
                    bump("test", str(number), "tests")
        finally:
            connection.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    numbers = sorted(Event.objects.filter(kind="test").values_list("revision", flat=True))
    assert numbers == list(range(before + 1, before + 21))
