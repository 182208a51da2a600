"""Events are append-only: in the model, and in the database itself."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction

from mmserve.errors import Conflict
from registry.models import Event
from registry.revision import bump


@pytest.fixture
def event(db: None) -> Event:
    bump("model.registered", "acme/echo", "tests")
    found = Event.objects.first()
    assert found is not None
    return found


def test_an_event_is_neither_saved_again_nor_deleted(event: Event) -> None:
    event.reason = "better"
    with pytest.raises(Conflict, match="append-only"):
        event.save()
    with pytest.raises(Conflict, match="append-only"):
        event.delete()


@pytest.mark.parametrize(
    "statement",
    ["UPDATE registry_event SET reason = 'x'", "DELETE FROM registry_event"],
)
def test_the_database_refuses_to_change_an_event_whoever_asks(event: Event, statement: str) -> None:
    with (
        pytest.raises(DatabaseError, match="append-only"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)

    assert Event.objects.get().reason == ""


@pytest.mark.parametrize("kind", ["update", "replace"])
def test_the_database_refuses_to_put_another_event_in_its_place(event: Event, kind: str) -> None:
    columns = "id, at, kind, subject, actor, reason, data, revision"
    values = f"{event.pk}, CURRENT_TIMESTAMP, 'x', 'x', 'x', 'x', '{{}}', 1"
    written = f"INSERT INTO registry_event ({columns}) VALUES ({values})"
    if kind == "update":
        written += " ON CONFLICT (id) DO UPDATE SET reason = 'x'"
    elif connection.vendor == "sqlite":
        written = written.replace("INSERT", "INSERT OR REPLACE", 1)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(written)

    assert Event.objects.get().reason == ""


def test_a_queryset_cannot_get_around_it(event: Event) -> None:
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        Event.objects.update(actor="nobody")
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        Event.objects.all()._raw_delete("default")


@pytest.mark.django_db(transaction=True)
def test_flush_empties_the_table_and_leaves_the_guard() -> None:
    bump("model.registered", "acme/echo", "tests")

    call_command("flush", interactive=False, verbosity=0)

    assert not Event.objects.exists()
    bump("model.registered", "acme/echo", "tests")
    with pytest.raises(DatabaseError, match="append-only"):
        Event.objects.update(actor="nobody")
