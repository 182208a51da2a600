"""Triggers that keep the database itself from changing or deleting an event, whoever asks."""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper

MESSAGE = "events are append-only"

INSTALL = {
    "sqlite": [
        f"""CREATE TRIGGER IF NOT EXISTS registry_event_no_update BEFORE UPDATE ON registry_event
            BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END""",
        f"""CREATE TRIGGER IF NOT EXISTS registry_event_no_delete BEFORE DELETE ON registry_event
            BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END""",
        # INSERT OR REPLACE deletes what is in its way without asking the trigger above.
        f"""CREATE TRIGGER IF NOT EXISTS registry_event_no_replace BEFORE INSERT ON registry_event
            WHEN EXISTS (SELECT 1 FROM registry_event WHERE id = NEW.id)
            BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END""",  # noqa: S608 - nothing of a user's
    ],
    "postgresql": [
        f"""CREATE FUNCTION registry_event_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION '{MESSAGE}' USING ERRCODE = 'restrict_violation'; END $$""",
        """CREATE TRIGGER registry_event_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON registry_event
           FOR EACH STATEMENT EXECUTE FUNCTION registry_event_refuse()""",
    ],
}
REMOVE = {
    "sqlite": [
        "DROP TRIGGER IF EXISTS registry_event_no_update",
        "DROP TRIGGER IF EXISTS registry_event_no_delete",
        "DROP TRIGGER IF EXISTS registry_event_no_replace",
    ],
    "postgresql": [
        "DROP TRIGGER IF EXISTS registry_event_no_change ON registry_event",
        "DROP FUNCTION IF EXISTS registry_event_refuse()",
    ],
}


def install(connection: BaseDatabaseWrapper) -> None:
    """Create the triggers of this database's kind."""
    _run(connection, INSTALL[connection.vendor])


def remove(connection: BaseDatabaseWrapper) -> None:
    """Drop them: only for `flush` and for migrating backwards."""
    _run(connection, REMOVE[connection.vendor])


def _run(connection: BaseDatabaseWrapper, statements: list[str]) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
