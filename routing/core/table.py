"""The routing table: what can be served, as one frozen value stamped with a configuration revision."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mmserve.errors import ModelNotFound
from routing.core.assignment import ExperimentEntry, Experiments
from routing.core.cost import NO_PRICE, NOBODY_PAYS, BudgetEntry, Payers, Prices
from routing.core.live import DeploymentLoad, LiveColumns
from routing.core.route import AUTO, CandidateEntry, Cause, Policy, RouteEntry
from routing.core.scorer import USUAL_QUALITY, Scorer
from routing.core.slate import ALL_CAUSES, Line, Slate

NEAR_NAMES = 3
NEAR_ENOUGH = 0.5
MOST_PAYERS = 4096


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
    load_s: float | None = None  # from the first request to being up, as its latest loads tell
    failure: str = ""  # why nobody tries to load it any more
    devices: int = 1  # that one replica takes

    @property
    def can_wake(self) -> bool:
        """Whether a request can bring it up by waiting for it."""
        return bool(self.wanted_replicas) and not self.failure


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEntry:
    """One version, by the id that it is served under: ``name@version``.

    ``capabilities`` is empty where nothing is known of them; ``tags`` are its own and its model's.
    ``quality`` (0 to 1) is what is assumed of its answers while no scorer has learned otherwise.
    """

    served_id: str
    model: str
    deployments: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    prices: Prices = NO_PRICE
    context_length: int | None = None
    quality: float = USUAL_QUALITY
    words: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", self.capabilities | self.tags)

    @property
    def languages(self) -> frozenset[str]:
        """What it speaks, from tags like ``language=de``."""
        return frozenset(tag.removeprefix("language=") for tag in self.tags if tag.startswith("language="))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model; ``default`` is the served id behind its default alias.

    ``fallbacks`` (``name``, ``name@version`` or ``name@alias``) stand in for it, in this order, after the causes
    of ``fallback_on``, or without a token by ``first_token_s``.
    """

    id: str
    default: str | None
    fallbacks: tuple[str, ...] = ()
    fallback_on: frozenset[Cause] = ALL_CAUSES
    first_token_s: float | None = None


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
    budgets: Mapping[tuple[str, str], tuple[BudgetEntry, ...]]
    routes: Mapping[str, RouteEntry]
    scorer: Scorer | None
    experiments: Experiments
    rows: Mapping[str, int]  # a deployment's row in LiveColumns
    _chained: Mapping[str, ModelEntry]  # what is asked for by a name or an alias of a model with fallbacks
    _arms: dict[tuple[str, str], Slate]  # by what was asked for (a route, a model's version) and version
    _slates: dict[str, Slate]  # of routes from the beginning, of models and versions as they are asked for
    _payers: dict[tuple[str, str, str], Payers] = field(
        default_factory=dict, init=False
    )  # by key, team and route

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
        routes: Iterable[RouteEntry] = (),
        scorer: Scorer | None = None,
        experiments: Iterable[ExperimentEntry] = (),
    ) -> RoutingTable:
        """Index the entries, hang every deployment on its version, and make the routes' slates."""
        by_id = {entry.id: entry for entry in deployments}
        serving: dict[str, list[str]] = {}
        for entry in by_id.values():
            serving.setdefault(entry.served_id, []).append(entry.id)
        limits: dict[tuple[str, str], tuple[BudgetEntry, ...]] = {}
        for budget in budgets:
            place = (budget.scope.value, budget.subject)
            limits[place] = (*limits.get(place, ()), budget)
        by_name = {entry.id: entry for entry in models}
        table = cls(
            revision=revision,
            models=by_name,
            versions={entry.served_id: _deployed(entry, serving.get(entry.served_id)) for entry in versions},
            aliases=dict(aliases),
            deployments=by_id,
            budgets=limits,
            routes={entry.id: entry for entry in routes},
            scorer=scorer,
            experiments=Experiments(experiments),
            rows={key: row for row, key in enumerate(by_id, start=1)},
            _chained=_chained(by_name, aliases),
            _arms={},
            _slates={},
        )
        for route in table.routes.values():
            table._slates[route.id] = table.slate_of(route)
        table._slates[AUTO] = table._auto()
        return table

    def budgets_of(self, *, key: str, team: str, route: str) -> Payers:
        """Every budget that pays for a request of this key, its team and this route."""
        if not self.budgets:
            return NOBODY_PAYS
        who = (key, team, route)
        found = self._payers.get(who)
        if found is None:
            places = zip(("key", "team", "route"), who, strict=True)
            found = Payers(one for place in places for one in self.budgets.get(place, ()))
            if len(self._payers) >= MOST_PAYERS:
                self._payers.clear()
            self._payers[who] = found
        return found

    def columns(self, loads: Mapping[str, DeploymentLoad] | None = None) -> LiveColumns:
        """Columns for the live state of this table's deployments, filled with what is known."""
        found = LiveColumns(self.rows, {key: entry.load_s for key, entry in self.deployments.items()})
        for deployment, load in (loads or {}).items():
            found.note(deployment, load)
        return found

    def slate(self, model_id: str) -> Slate:
        """Everybody who could serve a route, ``auto``, a name, a version or an alias; else ModelNotFound."""
        found = self._slates.get(model_id)
        if found is not None:
            if found.route is not None and found.route != AUTO and not self.routes[found.route].enabled:
                raise ModelNotFound(f"The route {model_id!r} is switched off.", param="model")
            return found
        version = self.resolve(model_id)
        if self._chained and model_id in self._chained and model_id not in self.versions:
            found = self._slates[model_id] = self._slate_of_model(self._chained[model_id], version)
            return found
        return self.slate_of_version(version)

    def known_slate(self, model_id: str) -> Slate | None:
        """The same where it was made before: of a route always, unless the table has no such route."""
        return self._slates.get(model_id)

    def slate_of_version(self, version: VersionEntry) -> Slate:
        """The deployments of one version."""
        found = self._slates.get(version.served_id)
        if found is None:
            found = Slate(version.served_id, [Line(version=version)], table=self)
            self._slates[version.served_id] = found
        return found

    def slate_of_arm(self, version: VersionEntry, asked: Slate) -> Slate:
        """An arm's version in the place of what was asked for: of a route, under its name and its constraints."""
        if asked.route is None and asked.own is None:
            return self.slate_of_version(version)
        key = (asked.id, version.served_id)
        found = self._arms.get(key)
        if found is None:
            line = [Line(version=version)]
            found = Slate(
                version.served_id,
                line,
                table=self,
                route=asked.route,
                constraints=asked.constraints,
                fallback_on=asked.fallback_on,
                first_token_s=asked.first_token_s,
            )
            self._arms[key] = found
        return found

    def slate_of(self, route: RouteEntry) -> Slate:
        """A route as it would be in this table, whether it is in it or a draft."""
        lines, problems = self._lines(route.candidates)
        return Slate(
            route.id,
            lines,
            table=self,
            route=route.id,
            policy=route.policy,
            weights=route.weights,
            constraints=route.constraints,
            problems=problems,
            fallback_on=route.fallback_on,
            first_token_s=route.first_token_s,
        )

    def _slate_of_model(self, model: ModelEntry, version: VersionEntry) -> Slate:
        """What was asked for, then those that stand in for it; they bring no chains of their own."""
        lines, problems = self._lines(CandidateEntry(target=target) for target in model.fallbacks)
        return Slate(
            version.served_id,
            [Line(version=version), *lines],
            table=self,
            policy=Policy.PRIORITY,
            problems=problems,
            fallback_on=model.fallback_on,
            first_token_s=model.first_token_s,
            stand_in=True,
        )

    def _lines(self, candidates: Iterable[CandidateEntry]) -> tuple[list[Line], list[str]]:
        """Those that mean something, and what is wrong with the others."""
        lines, problems = [], []
        for candidate in candidates:
            try:
                version = self.resolve(candidate.target)
            except ModelNotFound as error:
                problems.append(error.message)
            else:
                lines.append(Line(version=version, weight=candidate.weight, note=candidate.note))
        return lines, problems

    def _auto(self) -> Slate:
        """Every version that is deployed; the key's own patterns say which of them it may use."""
        lines = [Line(version=version) for version in self.versions.values() if version.deployments]
        return Slate(AUTO, lines, table=self, route=AUTO, policy=Policy.BALANCED)

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
        known = [*self.routes, *self.models, *self.aliases, *self.versions]
        near = difflib.get_close_matches(model_id[:200], known, n=NEAR_NAMES, cutoff=NEAR_ENOUGH)
        shown = model_id if len(model_id) <= 200 else model_id[:200] + "…"
        message = f"The model {shown!r} does not exist."
        if near:
            message += " Did you mean " + " or ".join(repr(name) for name in near) + "?"
        return message

    def _versions_of(self, model_id: str) -> str:
        names = sorted(entry.served_id for entry in self.versions.values() if entry.model == model_id)
        return ", ".join(names) or "it has no version yet"


def _chained(models: Mapping[str, ModelEntry], aliases: Mapping[str, str]) -> dict[str, ModelEntry]:
    found = {name: entry for name, entry in models.items() if entry.fallbacks}
    if found:
        for alias in aliases:
            entry = found.get(alias.partition("@")[0])
            if entry is not None:
                found[alias] = entry
    return found


def _deployed(entry: VersionEntry, deployments: list[str] | None) -> VersionEntry:
    if not deployments and not entry.deployments:
        return entry
    return replace(entry, deployments=tuple(sorted(deployments or ())))
