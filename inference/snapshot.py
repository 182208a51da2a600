"""Rows become values here, once: the routing table of one configuration revision."""

from __future__ import annotations

from django.db import transaction

from inference.capacity.eta import usual_s
from inference.models import Deployment
from registry.models import Alias, Model, ModelVersion, VersionState
from registry.revision import current
from routing.core.cost import Prices
from routing.core.scorer import assumed_quality
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from routing.experiments.table import experiment_entries
from routing.route_entries import route_entries, scorer_in_use
from routing.spending import budget_entries


@transaction.atomic
def routing_table() -> RoutingTable:
    """Read the whole table in ten queries, however many rows there are."""
    revision = current()
    aliases = {}
    defaults = {}
    for alias in Alias.objects.select_related("model", "version__model"):
        served_id = alias.version.served_id
        aliases[str(alias)] = served_id
        if alias.is_default:
            defaults[alias.model_id] = served_id
    versions = ModelVersion.objects.exclude(state=VersionState.ARCHIVED).select_related("model")
    deployments = Deployment.objects.select_related("version__model")
    return RoutingTable.build(
        revision=revision,
        models=[ModelEntry(id=row.name, default=defaults.get(row.pk)) for row in Model.objects.all()],
        versions=[_version(row) for row in versions],
        aliases=aliases,
        deployments=[_entry(row) for row in deployments],
        budgets=budget_entries(),
        experiments=experiment_entries(),
        routes=route_entries(),
        scorer=scorer_in_use(),
    )


def _version(row: ModelVersion) -> VersionEntry:
    return VersionEntry(
        served_id=row.served_id,
        model=row.model.name,
        capabilities=frozenset(row.capabilities),
        tags=frozenset((*row.model.tags, *row.tags)),
        prices=_prices(row),
        context_length=row.facts.get("context_length"),
        quality=assumed_quality(row.facts.get("parameters")),
    )


def _prices(row: ModelVersion) -> Prices:
    return Prices.of(
        per_million_input=row.price_input,
        per_million_cached_input=row.price_cached_input,
        per_million_output=row.price_output,
        per_device_hour=row.price_device_hour,
    )


def _entry(row: Deployment) -> DeploymentEntry:
    facts = row.version.facts
    return DeploymentEntry(
        id=row.name,
        served_id=row.version.served_id,
        limits=Limits(
            queue_bound=row.queue_bound,
            hold_bound=min(row.queue_bound, row.hold_bound or row.queue_bound),
            default_deadline_s=float(row.deadline_s),
            context_length=row.context_length or facts.get("context_length"),
        ),
        wanted_replicas=row.replicas,
        has_chat_template="chat" in row.version.capabilities,
        load_s=usual_s(row.loads),
        failure=row.failure,
        devices=row.tensor_parallel,
    )
