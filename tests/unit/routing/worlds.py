"""Tables with routes, and live states, for tests and for hypothesis to make up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from routing.core.cost import Prices
from routing.core.decision import DeploymentLoad
from routing.core.route import CandidateEntry, Constraints, Policy, RouteEntry, Weights, Wishes
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry

WORDS = ("chat", "json", "tools", "region=eu", "region=us", "language=de")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One candidate: a version, its deployment, its load, and its line in the route."""

    version: VersionEntry
    deployment: DeploymentEntry | None
    load: DeploymentLoad | None
    weight: float = 1.0

    @property
    def served_id(self) -> str:
        return self.version.served_id


def option(name: str, **more: Any) -> Option:
    """A ready candidate ``name@1`` with a deployment of its name."""
    served_id = f"{name}@1"
    return Option(
        version=VersionEntry(
            served_id=served_id,
            model=name,
            capabilities=frozenset(more.pop("capabilities", ("chat", "completion"))),
            tags=frozenset(more.pop("tags", ())),
            prices=Prices.of(
                per_million_input=Decimal(str(more.pop("price_in", 0))),
                per_million_output=Decimal(str(more.pop("price_out", 0))),
            ),
            quality=more.pop("quality", 0.5),
        ),
        weight=more.pop("weight", 1.0),
        deployment=DeploymentEntry(
            id=name,
            served_id=served_id,
            limits=Limits(context_length=more.pop("context", 4096)),
            wanted_replicas=more.pop("wanted", 1),
            load_s=more.pop("load_s", None),
            failure=more.pop("failure", ""),
        ),
        load=DeploymentLoad(**{"ready": 1, "max_streams": 10, **more}),
    )


def table_of(
    options: list[Option],
    policy: Policy = Policy.BALANCED,
    *,
    weights: Weights | None = None,
    constraints: Constraints | None = None,
    **more: Any,
) -> RoutingTable:
    """The options, and a route ``r`` over all of them in this order."""
    return RoutingTable.build(
        revision=1,
        models=[ModelEntry(id=one.version.model, default=one.served_id) for one in options],
        versions=[one.version for one in options],
        aliases={},
        deployments=[one.deployment for one in options if one.deployment],
        routes=[
            RouteEntry(
                id="r",
                candidates=tuple(CandidateEntry(target=one.served_id, weight=one.weight) for one in options),
                policy=policy,
                weights=weights or Weights(),
                constraints=constraints or Constraints(),
            )
        ],
        **more,
    )


def loads_of(options: list[Option]) -> dict[str, DeploymentLoad]:
    return {one.deployment.id: one.load for one in options if one.deployment and one.load}


@st.composite
def options(draw: Any, name: str) -> Option:
    """Anything that can be configured and heard of."""
    whole = st.integers(0, 50)
    made = option(
        name,
        capabilities=draw(st.sets(st.sampled_from(WORDS[:3]))) | {"completion"},
        tags=draw(st.sets(st.sampled_from(WORDS[3:]))),
        price_in=draw(whole),
        price_out=draw(whole),
        quality=draw(st.floats(0, 1)),
        weight=draw(st.floats(0, 10)),
        context=draw(st.sampled_from([None, 16, 128, 4096])),
        wanted=draw(st.integers(0, 1)),
        load_s=draw(st.none() | st.floats(1, 1000)),
        failure=draw(st.sampled_from(["", "", "", "out of memory"])),
        ready=draw(st.integers(0, 2)),
        loading=draw(st.integers(0, 1)),
        running=draw(whole),
        waiting=draw(whole),
        ttft_s=draw(st.floats(0, 5)),
        tokens_per_s=draw(st.floats(0, 500)),
        jobs_per_s=draw(st.floats(0, 50)),
    )
    kind = draw(st.integers(0, 5))
    return replace(made, deployment=None) if kind == 0 else replace(made, load=None) if kind == 1 else made


@st.composite
def worlds(draw: Any, most: int = 6) -> list[Option]:
    return [draw(options(f"m{place}")) for place in range(draw(st.integers(1, most)))]


constraints = st.builds(
    Constraints,
    require=st.lists(st.sampled_from(WORDS), max_size=2, unique=True).map(tuple),
    max_cost_usd=st.none() | st.floats(0, 0.02),
    max_ttft_s=st.none() | st.floats(0.01, 100),
    max_tpot_s=st.none() | st.floats(0.01, 2),
    min_context=st.none() | st.integers(1, 5000),
)
wishes = st.builds(
    Wishes,
    require=st.lists(st.sampled_from(WORDS), max_size=2, unique=True).map(tuple),
    prefer=st.lists(st.sampled_from([*WORDS, "m0", "m1@1"]), max_size=2, unique=True).map(tuple),
    max_cost_usd=st.none() | st.floats(0, 0.02),
    max_ttft_s=st.none() | st.floats(0.01, 100),
    no_fallback=st.booleans(),
)
