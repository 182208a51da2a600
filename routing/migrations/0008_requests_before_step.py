"""A ramp that goes on while this is applied counts its present step's requests from now on, not from its start."""

import django.core.validators
from django.db import migrations, models


def count_from_now(apps, schema_editor):
    experiments = apps.get_model("routing", "Experiment").objects
    totals = apps.get_model("routing", "ArmTotals").objects
    for row in experiments.filter(state__in=("ramping", "paused")):
        found = totals.filter(experiment=row, phase=row.phase)
        row.requests_before_step = dict(found.values_list("arm", "requests"))
        row.save(update_fields=["requests_before_step"])


class Migration(migrations.Migration):
    dependencies = [
        ("routing", "0007_route_hedging"),
    ]

    operations = [
        migrations.AddField(
            model_name="experiment",
            name="requests_before_step",
            field=models.JSONField(default=dict, editable=False),
        ),
        migrations.AlterField(
            model_name="experiment",
            name="step_requests",
            field=models.PositiveIntegerField(
                default=100,
                help_text="requests that each arm has in each step at least",
                validators=[django.core.validators.MaxValueValidator(1000000000)],
            ),
        ),
        migrations.RunPython(count_from_now, migrations.RunPython.noop),
    ]
