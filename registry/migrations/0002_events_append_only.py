"""The database itself refuses to change or delete an event.

SQLite forgets a table's triggers when a later migration rebuilds the table: such a migration runs this step again.
"""

from django.db import migrations

from registry import append_only


def install(apps, schema_editor):
    append_only.install(schema_editor.connection)


def remove(apps, schema_editor):
    append_only.remove(schema_editor.connection)


class Migration(migrations.Migration):
    dependencies = [("registry", "0001_initial")]

    operations = [migrations.RunPython(install, remove, elidable=False)]
