"""The routing table: what can be served, as one frozen value stamped with a configuration revision."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mmserve.errors import ModelNotFound
from routing.core.cost import NO_PRICE, BudgetEntry, Prices

NEAR_NAMES = 3
NEAR_ENOUGH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one deployment lets a request ask for; None is "as the engine says"."""

    queue_bound: int = 256
    hold_bound: int = 256  # requests that may wait for it to come up
    default_deadline_s: float = 300.0
    context_length: int | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentEntry:
    """One deployment: its id is the stem of its queues' names."""

    id: str
    served_id: str
    limits: Limits = field(default_factory=Limits)
    wanted_replicas: int = 1
    has_chat_template: bool = True
    load_s: float | None = None  # how long its loads took, on the average
    failure: str = ""  # why nobody tries to load it any more
    devices: int = 1  # that one replica takes


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEntry:
    """One version, by the id that it is served under: ``name@version``."""

    served_id: str
    model: str
    deployments: tuple[str, ...] = ()
    prices: Prices = NO_PRICE


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model; ``default`` is the served id behind its default alias."""

    id: str
    default: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """All that a decision reads of the configuration. ``aliases`` maps ``name@alias`` to a served id.

    ``budgets`` are by scope and subject.
    """

    revision: int
    models: Mapping[str, ModelEntry]
    versions: Mapping[str, VersionEntry]
    aliases: Mapping[str, str]
    deployments: Mapping[str, DeploymentEntry]
    budgets: Mapping[tuple[str, str], tuple[BudgetEntry, ...]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        *,
        revision: int,
        models: Iterable[ModelEntry],
        versions: Iterable[VersionEntry],
        aliases: Mapping[str, str],
        deployments: Iterable[DeploymentEntry],
        budgets: Iterable[BudgetEntry] = (),
    ) -> RoutingTable:
        """Index the entries and hang every deployment on its version."""
        by_id = {entry.id: entry for entry in deployments}
        serving: dict[str, list[str]] = {}
        for entry in by_id.values():
            serving.setdefault(entry.served_id, []).append(entry.id)
        limits: dict[tuple[str, str], tuple[BudgetEntry, ...]] = {}
        for budget in budgets:
            place = (budget.scope.value, budget.subject)
            limits[place] = (*limits.get(place, ()), budget)
        return cls(
            revision=revision,
            models={entry.id: entry for entry in models},
            versions={
                entry.served_id: replace(entry, deployments=tuple(sorted(serving.get(entry.served_id, ()))))
                for entry in versions
            },
            aliases=dict(aliases),
            deployments=by_id,
            budgets=limits,
        )

    def budgets_of(self, *, key: str, team: str, route: str) -> tuple[BudgetEntry, ...]:
        """Every budget that pays for a request of this key, its team and this route."""
        if not self.budgets:
            return ()
        found: tuple[BudgetEntry, ...] = ()
        for place in (("key", key), ("team", team), ("route", route)):
            found += self.budgets.get(place, ())
        return found

    def resolve(self, model_id: str) -> VersionEntry:
        """The version behind ``name``, ``name@version`` or ``name@alias``; else ModelNotFound."""
        found = self.versions.get(model_id)
        if found is not None:
            return found
        served_id = self.aliases.get(model_id)
        if served_id is None:
            model = self.models.get(model_id)
            if model is None:
                raise ModelNotFound(self._unknown(model_id), param="model")
            if model.default is None:
                raise ModelNotFound(
                    f"The model {model_id!r} has no default version. Name one: "
                    f"{self._versions_of(model_id)}.",
                    param="model",
                )
            served_id = model.default
        found = self.versions.get(served_id)
        if found is None:
            raise ModelNotFound(f"{model_id!r} points to {served_id!r}, which is gone.", param="model")
        return found

    def _unknown(self, model_id: str) -> str:
        known = [*self.models, *self.aliases, *self.versions]
        near = difflib.get_close_matches(model_id[:200], known, n=NEAR_NAMES, cutoff=NEAR_ENOUGH)
        shown = model_id if len(model_id) <= 200 else model_id[:200] + "…"
        message = f"The model {shown!r} does not exist."
        if near:
            message += " Did you mean " + " or ".join(repr(name) for name in near) + "?"
        return message

    def _versions_of(self, model_id: str) -> str:
        names = sorted(entry.served_id for entry in self.versions.values() if entry.model == model_id)
        return ", ".join(names) or "it has no version yet"
