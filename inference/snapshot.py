"""Rows become values here, once: the routing table of one configuration revision.

Only the columns that routing reads are fetched, as the database has them; what they say is remembered by their text,
so that the next table costs what has changed, and the look-up of the rest.
"""

from __future__ import annotations

import json
from decimal import Decimal
from functools import lru_cache
from typing import Any

from django.db import models, transaction
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast

from inference.capacity.eta import remembered, usual_s
from inference.models import Deployment
from registry.models import Alias, Model, ModelVersion, VersionState
from registry.revision import current
from routing.core.cost import Prices
from routing.core.route import Cause
from routing.core.scorer import assumed_quality
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from routing.experiments.table import experiment_entries
from routing.route_entries import route_entries, scorer_in_use
from routing.spending import budget_entries

REMEMBERED = 65_536
MS = 1e-3
PRICES = ("price_input", "price_cached_input", "price_output", "price_device_hour")


@transaction.atomic
def routing_table() -> RoutingTable:
    """Read the whole table in eleven queries, however many rows there are."""
    revision = current()
    names, tags = {}, {}
    for pk, name, words in Model.objects.order_by().values_list("pk", "name", _text("tags")):
        names[pk], tags[pk] = name, words
    chains = {pk: chain for pk, *chain in _chain_rows()}
    # Aliases and deployments may name an archived version, which is no candidate. What was made between two of
    # these queries is left out: its revision is a later one, and brings the next table.
    served: dict[int, str] = {}
    versions: dict[int, VersionEntry] = {}
    for pk, model, version, state, *columns in _version_rows():
        if model not in names:
            continue
        served[pk] = f"{names[model]}@{version}"
        if state != VersionState.ARCHIVED:
            versions[pk] = _version(served[pk], names[model], tags[model], *columns)
    aliases, defaults = {}, {}
    alias_rows = Alias.objects.order_by().values_list("model", "name", "version", "is_default")
    for model, alias, version, is_default in alias_rows:
        if version not in served:
            continue
        aliases[f"{names[model]}@{alias}"] = served[version]
        if is_default:
            defaults[model] = served[version]
    return RoutingTable.build(
        revision=revision,
        models=[_model(name, defaults.get(pk), *chains.get(pk, ())) for pk, name in names.items()],
        versions=versions.values(),
        aliases=aliases,
        deployments=[
            _deployment(served[version], *_known_of(versions.get(version)), *columns)
            for version, *columns in _deployment_rows()
            if version in served
        ],
        budgets=budget_entries(),
        experiments=experiment_entries(),
        routes=route_entries(),
        scorer=scorer_in_use(),
    )


def _chain_rows() -> Any:
    """Of the models that have fallbacks: few do."""
    return (
        Model.objects.order_by()
        .exclude(fallbacks=[])
        .values_list("pk", _text("fallbacks"), _text("no_fallback_on"), "first_token_ms")
    )


def _version_rows() -> Any:
    return ModelVersion.objects.order_by("pk").values_list(
        "pk",
        "model",
        "version",
        "state",
        _text("capabilities"),
        _text("tags"),
        _fact("context_length"),
        _fact("parameters"),
        *map(_text, PRICES),
    )


def _deployment_rows() -> Any:
    return Deployment.objects.order_by("pk").values_list(
        "version",
        "name",
        "queue_bound",
        "hold_bound",
        "deadline_s",
        "context_length",
        "replicas",
        "failure",
        "tensor_parallel",
        _text("past_loads"),
    )


@lru_cache(maxsize=REMEMBERED)
def _model(
    name: str,
    default: str | None,
    fallbacks: str = "[]",
    no_fallback_on: str = "[]",
    first_token_ms: int | None = None,
) -> ModelEntry:
    return ModelEntry(
        id=name,
        default=default,
        fallbacks=tuple(json.loads(fallbacks)),
        fallback_on=frozenset(Cause) - _words(no_fallback_on),
        first_token_s=None if first_token_ms is None else first_token_ms * MS,
    )


@lru_cache(maxsize=REMEMBERED)
def _version(
    served_id: str,
    model: str,
    model_tags: str,
    capabilities: str,
    tags: str,
    context_length: str | None,
    parameters: str | None,
    *prices: str | None,
) -> VersionEntry:
    return VersionEntry(
        served_id=served_id,
        model=model,
        capabilities=_words(capabilities),
        tags=_words(model_tags, tags),
        prices=_prices(*prices),
        context_length=_whole(context_length),
        quality=assumed_quality(_whole(parameters)),
    )


@lru_cache(maxsize=REMEMBERED)
def _words(*lists: str) -> frozenset[str]:
    """Of JSON lists; most rows have the words of many others."""
    return frozenset(word for one in lists for word in json.loads(one))


@lru_cache(maxsize=REMEMBERED)
def _prices(*prices: str | None) -> Prices:
    tokens_in, cached, tokens_out, hour = (None if one is None else Decimal(one) for one in prices)
    return Prices.of(
        per_million_input=tokens_in,
        per_million_cached_input=cached,
        per_million_output=tokens_out,
        per_device_hour=hour,
    )


def _known_of(version: VersionEntry | None) -> tuple[bool, int | None]:
    """Whether it chats, and its context; nothing is known of one that is archived."""
    return (False, None) if version is None else ("chat" in version.capabilities, version.context_length)


@lru_cache(maxsize=REMEMBERED)
def _deployment(
    served_id: str,
    chats: bool,
    longest: int | None,
    name: str,
    queue_bound: int,
    hold_bound: int | None,
    deadline_s: int,
    context_length: int | None,
    replicas: int,
    failure: str,
    tensor_parallel: int,
    past_loads: str,
) -> DeploymentEntry:
    return DeploymentEntry(
        id=name,
        served_id=served_id,
        limits=Limits(
            queue_bound=queue_bound,
            hold_bound=min(queue_bound, hold_bound or queue_bound),
            default_deadline_s=float(deadline_s),
            context_length=context_length or longest,
        ),
        wanted_replicas=replicas,
        has_chat_template=chats,
        load_s=_load_s(past_loads),
        failure=failure,
        devices=tensor_parallel,
    )


@lru_cache(maxsize=REMEMBERED)
def _load_s(past_loads: str) -> float | None:
    return usual_s(remembered(json.loads(past_loads)))


def _text(column: str) -> Cast:
    """A column as the database writes it: cheaper than as Python has it, and it can be remembered by."""
    return Cast(column, models.TextField())


def _fact(name: str) -> Cast:
    """One of the facts, as text."""
    return Cast(KeyTextTransform(name, "facts"), models.TextField())


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)
