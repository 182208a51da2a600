"""One row for each request that was in an experiment, as many at once as a batch has."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from django.db import connections, router

from routing.models.experiments import Exposure

# Request, when (to the second), key, experiment, phase, arm, what served it, unit: in the order of the model's fields.
ExposureRow = tuple[str, datetime.datetime, str, int, int, str, str, str]


def insert_exposures(rows: Sequence[ExposureRow]) -> None:
    """Insert them; a request that has one already keeps it.

    ``bulk_create`` would make an object of each and one statement of all their values: half of what counting an
    experiment's requests takes.
    """
    if not rows:
        return
    connection = connections[router.db_for_write(Exposure)]
    quote, adapt = connection.ops.quote_name, connection.ops.adapt_datetimefield_value
    columns = [str(field.column) for field in Exposure._meta.concrete_fields]
    places = ", ".join(["%s"] * len(columns))
    into = f"INSERT INTO {quote(Exposure._meta.db_table)} ({', '.join(map(quote, columns))})"
    # Names of columns alone: every value is a parameter.
    statement = f"{into} VALUES ({places}) ON CONFLICT DO NOTHING"  # noqa: S608
    adapted = {at: adapt(at) for at in {one[1] for one in rows}}
    with connection.cursor() as cursor:
        cursor.executemany(statement, [(one[0], adapted[one[1]], *one[2:]) for one in rows])
