"""The trigger against INSERT OR REPLACE, for databases from before it."""

from django.db import migrations

from registry import append_only


def install(apps, schema_editor):
    # What is there already stays as it is.
    if schema_editor.connection.vendor == "sqlite":
        append_only.install(schema_editor.connection)


class Migration(migrations.Migration):
    dependencies = [("registry", "0004_deletion_and_attempt")]
    operations = [migrations.RunPython(install, migrations.RunPython.noop)]
