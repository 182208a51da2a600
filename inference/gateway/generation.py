"""One request from its plan to its settlement, the same for every transport."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from inference.gateway import metrics
from inference.gateway.admission import NO_RATES, Admission, Rates, Refused
from inference.gateway.affinity import Affinity
from inference.gateway.auth import KeyGrant
from inference.gateway.config import GatewayConfig
from inference.gateway.controls import Controls
from inference.gateway.decisions import DecisionLog, decision_record
from inference.gateway.experience import Experience
from inference.gateway.facts import facts_of, with_traits
from inference.gateway.fallback import Mover, cause_of, exhausted, stay
from inference.gateway.flight import Flight
from inference.gateway.holding import Hold, class_of, deadline_s_of, hold_of
from inference.gateway.hub import Hub
from inference.gateway.ledger import Reservation
from inference.gateway.live import LiveState
from inference.gateway.plan import Plan
from inference.gateway.refusal import nothing_serves
from inference.gateway.refusals import Refusals
from inference.gateway.token_counts import TokenCounts
from inference.gateway.usage import (
    CANCELLED,
    CLIENT_GONE,
    UsageRecord,
    cost_nano,
    most_cost_nano,
    record_of,
    record_of_lost,
)
from inference.protocol import ReplicaBeat
from mmserve.errors import (
    AllAttemptsFailed,
    DeadlineExceeded,
    InsufficientQuota,
    InvalidRequest,
    MmserveError,
    ModelNotLoaded,
    ServerStopping,
)
from routing.core.assigner import decide_in_experiments
from routing.core.chain import Link, may_go_on
from routing.core.cost import NANO, NO_PRICE, Prices
from routing.core.decision import Decision, RequestFacts
from routing.core.filters import BREAKER_OPEN, NO_REPLICA, in_doubt
from routing.core.live import DeploymentLoad
from routing.core.records import AttemptRecord, counts_for_its_arm
from routing.core.route import Cause
from routing.core.table import DeploymentEntry, RoutingTable

log = logging.getLogger(__name__)

# Outcome of an attempt whose text nobody waits for: another one was sooner.
HEDGED = "hedged"
# In place of a job that there is not: what was admitted once is not counted twice.
NO_JOB = "-"


class Beside(Protocol):
    """A second attempt of a request; see inference.gateway.hedging."""

    def takes_over(self, error: MmserveError) -> bool: ...

    def end(self) -> None: ...


class Lost(NamedTuple):
    """An attempt that was given up: what it used, and that of the route's budgets."""

    record: UsageRecord
    bill: Reservation | None  # None: no budget pays for it


def new_id() -> str:
    """An id that no other request has."""
    return secrets.token_hex(12)


class Generation:
    """A request that was admitted: its flight, and what its headers say."""

    __slots__ = ("_rest", "assignments", "attempts", "decision", "facts", "flight", "given_up", "hedge", "last_error",
                 "most_cost_nano", "plan", "rates", "request_id", "route", "sent", "table", "units")  # fmt: skip

    def __init__(
        self,
        request_id: str,
        plan: Plan,
        facts: RequestFacts,
        decision: Decision,
        rates: Rates,
        flight: Flight,
        table: RoutingTable,
        most_cost_nano: int,
    ) -> None:
        self.request_id = request_id
        self.plan = plan
        self.facts = facts
        self.decision = decision
        self.rates = rates
        self.flight = flight
        self.table = table
        self.most_cost_nano = most_cost_nano
        self.route = route_of(decision)
        self._rest: list[Link] | None = None
        self.attempts: list[AttemptRecord] = []  # that were not the answer, and choices that were passed over
        self.given_up: frozenset[str] = frozenset()  # deployments that had it and failed
        self.last_error: MmserveError | None = None  # of the latest of them
        self.sent = False  # whether the present choice has been given its job
        self.hedge: Beside | None = None
        self.assignments, self.units = exposures_of(decision)
        if self.assignments:
            flight.opening = ""

    @property
    def rest(self) -> list[Link]:
        """The choices that are left; they may be worked out only now."""
        if self._rest is None:
            self._rest = list(self.decision.chain[1:])
        return self._rest

    @property
    def may_move(self) -> bool:
        """Whether there may be another choice; it is not worked out for that."""
        return may_go_on(self.decision.chain) if self._rest is None else bool(self._rest)

    def expose(self, experiment: str, arm: str, unit: str) -> None:
        """Count it for an arm of one experiment more."""
        self.assignments[experiment] = arm
        self.units[experiment] = unit
        self.flight.opening = self.flight.opening or ""

    @property
    def fallbacks(self) -> int:
        """How many choices were given up for another; one that was only passed over was none."""
        return len(self.given_up - {self.flight.deployment.id})

    def gave_up(self, error: MmserveError) -> None:
        """The present choice has failed."""
        flight, self.last_error = self.flight, error
        self.given_up |= {flight.deployment.id}
        self.note(flight.deployment, error.error_code or "error", error.message, flight.replica)

    def note(self, deployment: DeploymentEntry, outcome: str, why: str, replica: str | None = None) -> None:
        """An attempt that has ended without being the answer, or was not made."""
        self.attempts.append(
            AttemptRecord(
                deployment=deployment.id,
                served_id=deployment.served_id,
                outcome=outcome,
                after_s=time.monotonic() - self.flight.begun_at,
                replica=replica or "",
                why=why,
            )
        )

    def is_blamed(self, outcome: str, status: int) -> bool:
        """Whether an answer that ended so is a failure of the deployment that had the request last."""
        error = self.last_error
        if outcome in (ServerStopping.code, ModelNotLoaded.code):
            return False
        if outcome == AllAttemptsFailed.code and error is not None:
            outcome, status = error.error_code or "error", error.status
        asked_s = self.plan.deadline_s
        if outcome == DeadlineExceeded.code and asked_s is not None:
            # Who gives it less time than it may have has to take what comes of that.
            return self.sent and asked_s >= self.flight.deployment.limits.default_deadline_s
        return self.sent and status >= 500

    @property
    def prices(self) -> Prices:
        """Of the version that serves it: after a fallback, the other one's."""
        version = self.table.versions.get(self.flight.deployment.served_id)
        return version.prices if version else NO_PRICE

    def most_nano(self, deployment: DeploymentEntry) -> int:
        """The most that it can cost there."""
        return most_cost_nano(self.plan, self.table.versions[deployment.served_id].prices, deployment)

    @property
    def cost_nano(self) -> int:
        """What it costs by now."""
        return cost_nano(self.flight, self.prices)


def route_of(decision: Decision) -> str:
    """The route that was asked for, or ""."""
    return decision.route or ""


def exposures_of(decision: Decision) -> tuple[dict[str, str], dict[str, str]]:
    """Arms and hashed units by experiment, as records have them."""
    found = decision.assignments
    return {one.experiment: one.arm for one in found}, {one.experiment: one.unit for one in found}


def answer_id(generation: Generation) -> str:
    """The ``id`` in the answer's body."""
    return (
        "chatcmpl-" if generation.plan.endpoint == "chat.completions" else "cmpl-"
    ) + generation.request_id


class Generator:
    """Decides, admits and dispatches; cancels and settles."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        table: Callable[[], RoutingTable],
        live: LiveState,
        hub: Hub,
        affinity: Affinity,
        admission: Admission,
        controls: Controls,
        counts: TokenCounts,
        reply_to: str,
    ) -> None:
        self._config = config
        self._table = table
        self._live = live
        self._hub = hub
        self.affinity = affinity
        self._admission = admission
        self._controls = controls
        self._counts = counts
        self._reply_to = reply_to
        self._log = DecisionLog(config.decisions_per_s)
        self.refusals = Refusals()
        self.experience = Experience(live)
        self.mover_of: Callable[[Generation], Mover] = lambda generation: stay
        self.on_admitted: Callable[[Generation], None] = lambda generation: None

    async def decide(self, plan: Plan, decision_id: str, grant: KeyGrant) -> Decision:
        """Who would serve this; nothing is run."""
        facts = self._with_budget(facts_of(plan, decision_id, grant, self._table()), grant)
        return (await self._counted(plan, facts, self._decide(facts)))[1]

    async def _counted(
        self, plan: Plan, facts: RequestFacts, decision: Decision
    ) -> tuple[RequestFacts, Decision]:
        """The same, or decided anew with the prompt counted, where a count at hand says more than the bound."""
        if facts.prompt_tokens_bound is None:
            return facts, decision
        seen = decision.judgement
        doubtful = in_doubt(seen.slate, seen.live, facts, seen.filters)
        counted = await self._counts.of(plan, doubtful) if doubtful else {}
        if not counted:
            return facts, decision
        facts = replace(facts, counted=tuple(counted.items()))
        return facts, self._decide(facts)

    def _with_budget(self, facts: RequestFacts, grant: KeyGrant) -> RequestFacts:
        """With what was heard of the tightest budget in the last second, so that another choice may still fit it."""
        table, left_of = self._table(), self._admission.left
        if not table.budgets or not left_of:
            return facts
        budgets = table.budgets_of(key=grant.id, team=grant.team, route=table.slate(facts.model).route or "")
        tightest = left_of.tightest(budgets, time.monotonic())
        if tightest is None:
            return facts
        budget, left = tightest
        return replace(facts, budget=f"the {budget.name}", budget_left_usd=left / NANO)

    def _decide(self, facts: RequestFacts) -> Decision:
        table = self._table()
        live = self._live.columns(table)
        return decide_in_experiments(table, live, facts)

    async def open(self, plan: Plan, grant: KeyGrant) -> Generation:
        """Decide, admit, dispatch; every refusal is an MmserveError (or Refused, with the key's rates)."""
        request_id = new_id()
        bare = facts_of(plan, request_id, grant, self._table())
        facts = self._with_budget(bare, grant)
        decision = self._decide(facts)
        if not decision.chain and facts is not bare:
            # What was heard of a budget is a second old: where nobody fits it, its ledger says so, or no more.
            facts, decision = bare, self._decide(bare)
        facts, decision = await self._counted(plan, facts, decision)
        try:
            while (not decision.chain or decision.chain[0].cold) and not self._live.settled:
                # This process has only just begun to hear beats: what it has not heard of may well be ready.
                await self._live.news()
                decision = self._decide(facts)
            return await self._admit(plan, grant, facts, decision)
        except Refused as refused:
            self._note_refusal(plan, grant, facts, decision, refused.error)
            raise
        except MmserveError as error:
            self._note_refusal(plan, grant, facts, decision, error)
            raise

    async def _admit(
        self, plan: Plan, grant: KeyGrant, facts: RequestFacts, decision: Decision
    ) -> Generation:
        request_id = decision.id
        table = self._table()
        if not decision.chain:
            raise nothing_serves(plan, decision, table, self._live)
        first = decision.chain[0]
        deployment = table.deployments[first.id]
        _check_limits(plan, deployment)
        deadline_s = deadline_s_of(plan, deployment)
        priority = class_of(plan, grant)
        if not may_go_on(decision.chain):
            # Nowhere else to go: refused before anything is made for it.
            self._refuse_if_full(deployment, hold_of(deployment, self._live) if first.cold else None)
        request = plan.request(request_id, self._reply_to, time.time() + deadline_s, priority)
        flight = Flight(request, plan, grant, deployment, deadline_at=time.monotonic() + deadline_s)
        prices = table.versions[deployment.served_id].prices
        most = most_cost_nano(plan, prices, deployment)
        generation = Generation(request_id, plan, facts, decision, NO_RATES, flight, table, most)
        link = first
        while True:
            try:
                await self.send(generation, link)
                break
            except (MmserveError, Refused) as problem:
                error = problem.error if isinstance(problem, Refused) else problem
                self._hub.remove(flight)
                generation.gave_up(error)
                following = self.next_link(generation, error)
                if following is None:
                    if len(generation.attempts) > 1:
                        raise exhausted(generation.attempts, error) from problem
                    raise
                link = following
                self.turn_to(generation, link)
                flight.begin_attempt()
            except BaseException:
                # The client left while its job was being written: it may be in the queue by now.
                self._hub.remove(flight)
                await asyncio.shield(self.stop(flight))
                # Whether its tokens were reserved nobody knows: they are not given back.
                self._settle(generation, CANCELLED, CLIENT_GONE, reserved_tokens=0)
                raise
        if generation.may_move or generation.attempts:
            flight.ask_first(self.mover_of(generation))
        self.on_admitted(generation)
        return generation

    def _refuse_if_full(self, deployment: DeploymentEntry, hold: Hold | None) -> None:
        drain_per_s = self._live.drain_per_s(deployment.id)
        self._admission.refuse_if_full(deployment, hold, drain_per_s, time.monotonic())

    def next_link(self, generation: Generation, error: MmserveError) -> Link | None:
        """The next choice after this error, and None where there is none; who cannot take it now is passed over."""
        table = generation.table
        allowed = cause_of(error) in generation.decision.judgement.slate.fallback_on
        if not allowed or time.monotonic() >= generation.flight.deadline_at:
            return None
        while generation.rest:
            link = generation.rest.pop(0)
            deployment = table.deployments.get(link.id)
            if deployment is None or _beyond(generation.plan, deployment):
                continue
            load = self._live.loads.get(link.id)
            if not self.experience.lets_through(link.id, time.monotonic()):
                generation.note(deployment, "breaker_open", BREAKER_OPEN)
            elif not deployment.can_wake and (load is None or not load.ready):
                generation.note(deployment, "no_replica", NO_REPLICA)
            else:
                return link
        return None

    def turn_to(self, generation: Generation, link: Link) -> None:
        """What is sent from now on goes to this choice."""
        generation.flight.deployment = generation.table.deployments[link.id]
        generation.most_cost_nano = generation.most_nano(generation.flight.deployment)
        generation.sent = False

    async def send(
        self, generation: Generation, link: Link, *, replaces: str = "", lost: Lost | None = None
    ) -> None:
        """Have the flight's job admitted and enqueued at this choice, in place of one that was admitted before.

        What that one held is held for this one; only what is owed for it stays.
        """
        plan, flight = generation.plan, generation.flight
        grant, deployment = flight.grant, flight.deployment
        hold = hold_of(deployment, self._live) if link.cold else None
        if not replaces:
            self._refuse_if_full(deployment, hold)
        budgets = self._table().budgets_of(key=grant.id, team=grant.team, route=generation.route)
        reservation = Reservation(flight.job_id, generation.most_cost_nano, budgets) if budgets else None
        released = flight.reservations if replaces and reservation else []
        if reservation is not None:
            flight.reservations = [*flight.reservations, reservation]
        load = self._live.loads.get(deployment.id)
        flight.crowd = (load.waiting, load.running) if load is not None and load.ready else None
        flight.expected_s = link.ttft_s
        prefers = "" if link.cold else self.affinity.place(flight)
        self._hub.add(flight)
        # Before anybody else can decide: a breaker lets one probe through.
        self.experience.began(deployment.id, time.monotonic())
        try:
            rates = await self._admission.admit(
                flight.request,
                job_id=flight.job_id,
                grant=grant,
                deployment=deployment,
                reserved_tokens=0 if replaces else plan.reserved_tokens,
                drain_per_s=self._live.drain_per_s(deployment.id),
                now=time.time(),
                replaces=replaces,
                hold=hold,
                reservation=reservation,
                released=released,
                bill=lost.bill if lost and released else None,
                prefers=prefers,
            )
        except BaseException as problem:
            if isinstance(problem, Refused):
                flight.reservations = [one for one in flight.reservations if one is not reservation]
            self.experience.left(deployment.id, time.monotonic())
            raise
        if released:
            flight.reservations = [one for one in flight.reservations if one not in released]
        generation.sent = True
        if not replaces:
            generation.rates = rates
        self._time_first_token(generation)
        if hold is not None:
            # Its job waits in the queue; the controller sees it there and brings the model up.
            self._admission.wake_controller()

    def _time_first_token(self, generation: Generation) -> None:
        """Where the wait for a first token is bounded and somebody else is left, it begins now."""
        slate = generation.decision.judgement.slate
        timed = Cause.TIMEOUT in slate.fallback_on and generation.may_move
        bound_s = slate.first_token_s if timed else None
        generation.flight.first_token_by = None if bound_s is None else time.monotonic() + bound_s

    def load_of(self, deployment: str) -> DeploymentLoad | None:
        """What was last heard of its replicas."""
        return self._live.loads.get(deployment)

    def may_take(self, generation: Generation, link: Link) -> bool:
        """Whether this choice makes as much as the request asks for, at no more than is held of budgets for it."""
        deployment = generation.table.deployments[link.id]
        return self.is_held(generation, deployment) and not _beyond(generation.plan, deployment)

    def is_held(self, generation: Generation, deployment: DeploymentEntry) -> bool:
        """Whether the request may cost no more there than is held of budgets for it now."""
        held = generation.flight.reservations
        return not held or generation.most_nano(deployment) <= generation.most_cost_nano

    def replicas(self, deployment: str) -> Sequence[ReplicaBeat]:
        """The last beats of those of its replicas that take jobs."""
        return self._live.ready(deployment)

    async def holder_of(self, flight: Flight) -> str:
        """The replica that has its job in hand; engines tell only after their next step. "": nobody known."""
        if flight.replica is not None or len(self.replicas(flight.deployment.id)) < 2:
            return flight.replica or ""
        try:
            waiting, status, worker = await self._admission.whereabouts(flight.job_id, flight.queue)
        except MmserveError:
            return ""
        return self._live.replica_of(worker) if status == "started" and not waiting else ""

    async def send_beside(self, generation: Generation, rival: Flight, *, prefers: str = "") -> None:
        """Have a second attempt enqueued, in a flight of its own: paid by the route, and by no rate of the key."""
        deployment = rival.deployment
        budgets = self._table().budgets_of(key="", team="", route=generation.route)
        reservation = None
        if budgets:
            reservation = Reservation(rival.job_id, generation.most_nano(deployment), budgets)
            rival.reservations = [reservation]
        self._hub.add(rival)
        await self._admission.admit(
            rival.request,
            job_id=rival.job_id,
            grant=rival.grant,
            deployment=deployment,
            reserved_tokens=0,
            drain_per_s=0.0,
            now=time.time(),
            replaces=NO_JOB,
            reservation=reservation,
            prefers=prefers,
        )
        self.experience.began(deployment.id, time.monotonic())

    async def give_up(self, generation: Generation, flight: Flight, *, failed: bool) -> Lost | None:
        """Stop an attempt that gives way to another one; what is owed for it, if an engine had begun it.

        One that was only slow may be in its first step before its engine has said a word of it.
        """
        untouched = await self.stop(flight)
        if untouched or (failed and not flight.accepted):
            return None
        load = self._live.loads.get(flight.deployment.id)
        record = record_of_lost(generation, flight, running=load.running if load else 0)
        if not record.cost_nano:
            return None
        budgets = self._table().budgets_of(key="", team="", route=generation.route)
        return Lost(record, Reservation(record.request_id, record.cost_nano, budgets) if budgets else None)

    def bill(self, lost: Lost, held: Sequence[Reservation] = ()) -> None:
        """Charge the route for an attempt that was given up, write it down, and give back what was held for it."""
        self._admission.note(lost.record, reservations=[lost.bill] if lost.bill else (), released=held)

    def release(self, held: Sequence[Reservation]) -> None:
        """Give back what was held for an attempt that costs nothing."""
        if held:
            self._admission.note(released=held)

    async def close(self, generation: Generation, *, outcome: str, status: int) -> None:
        """End a request: stop what still runs of it, then settle."""
        flight = generation.flight
        flight.over = True
        if generation.hedge is not None:
            generation.hedge.end()
        self._hub.remove(flight)
        if outcome != "completed":
            await self.stop(flight)
            flight.completion_tokens = flight.completion_tokens or len(flight.tokens)
        blamed = generation.is_blamed(outcome, status)
        self.experience.ended(flight, outcome, blamed=blamed, now=time.monotonic())
        self._settle(generation, outcome, status, reserved_tokens=generation.plan.reserved_tokens)
        # They know the generation, which knows its flight: all of it would wait for the collector.
        flight.mover = flight.on_first = None

    def _settle(self, generation: Generation, outcome: str, status: int, *, reserved_tokens: int) -> None:
        """Charge it for what it used, give back the rest, and write down both."""
        flight, plan = generation.flight, generation.plan
        load = self._live.loads.get(flight.deployment.id)
        running = load.running if load else 0
        cost = cost_nano(flight, generation.prices, outcome, running=running)
        record = record_of(generation, outcome=outcome, status=status, cost=cost)
        metrics.fallbacks.inc(record.fallbacks)
        written = b""
        if self._log.wants(outcome, record.fallbacks):
            written = decision_record(
                flight.grant,
                plan.endpoint,
                with_traits(generation.facts, plan, generation.table),
                generation.decision,
                record,
                attempts=generation.attempts,
                predicted_cost_nano=generation.most_cost_nano if generation.prices.priced else None,
                replica=flight.replica or "",
                preference=flight.preference,
            )
        self._admission.settle(
            flight.grant,
            record,
            reserved_tokens=reserved_tokens,
            used_tokens=flight.prompt_tokens + flight.completion_tokens,
            reservations=self._payers(generation),
            decision_id=generation.decision.id,
            decision=written,
        )

    def _payers(self, generation: Generation) -> list[Reservation]:
        """What is held for it; and nothing, of budgets that were made since: they pay as well."""
        flight = generation.flight
        budgets = self._table().budgets_of(
            key=flight.grant.id, team=flight.grant.team, route=generation.route
        )
        held = flight.reservations
        others = [one for one in held if one.budgets is not budgets]
        if not budgets or (held and not others):
            return held
        return [*held, Reservation(flight.job_id, 0, budgets)]

    def _note_refusal(
        self, plan: Plan, grant: KeyGrant, facts: RequestFacts, decision: Decision, error: MmserveError
    ) -> None:
        error.decision_id = decision.id
        record = _refused(
            grant,
            error,
            request_id=decision.id,
            model=plan.model,
            route=route_of(decision),
            # Without a choice it is the route's own name, and no version's.
            served_id=decision.served_id if "@" in decision.served_id else "",
            endpoint=plan.endpoint,
            stream=plan.stream,
        )
        # Of a budget that is used up no arm gets anything.
        used_up = isinstance(error, InsufficientQuota) and error.is_used_up
        if decision.assignments and counts_for_its_arm(record) and not used_up:
            record.assignments, record.units = exposures_of(decision)
            self._admission.note(record)
        else:
            self.refusals.count(record)
        if self._log.wants(record.outcome):
            facts = with_traits(facts, plan, self._table())
            written = decision_record(grant, plan.endpoint, facts, decision, record)
            self._admission.note(decision_id=decision.id, decision=written)

    def keeps(self, error: MmserveError) -> bool:
        """Whether the decision of a request that ends with this error would be written down."""
        return self._log.has_place(error.error_code or "error")

    def turned_away(self, plan: Plan, grant: KeyGrant, error: MmserveError) -> str:
        """Note a request that was refused before anything was made for it; the id of its decision."""
        facts = facts_of(plan, new_id(), grant, self._table())
        decision = self._decide(facts)
        self._note_refusal(plan, grant, facts, decision, error)
        return decision.id

    def turned_away_unread(
        self,
        grant: KeyGrant,
        error: MmserveError,
        *,
        model: str,
        route: str,
        served_id: str,
        endpoint: str,
        times: int,
    ) -> None:
        """Count requests of one kind that were refused without a decision that is kept."""
        record = _refused(
            grant,
            error,
            request_id=new_id(),
            model=model,
            route=route,
            served_id=served_id,
            endpoint=endpoint,
            count=times,
        )
        self.refusals.count(record)

    def flush_refusals(self) -> None:
        """Write down what was refused since the last time."""
        for record in self.refusals.take():
            self._admission.note(record)

    async def stop(self, flight: Flight) -> bool:
        """Take the job out of its queue (True), or tell the engine that has it, or may have it."""
        if flight.replica is not None:
            self._controls.cancel(flight.replica, flight.job_id)
            return False
        try:
            withdrawn = await self._admission.withdraw(flight.job_id, flight.queue, flight.deployment.id)
        except MmserveError as error:
            log.warning("cannot withdraw job %s: %s", flight.job_id, error)
            withdrawn = False
        if not withdrawn:
            for replica in self._live.replicas(flight.deployment.id):
                self._controls.cancel(replica, flight.job_id)
        return withdrawn


def _refused(
    grant: KeyGrant,
    error: MmserveError,
    *,
    request_id: str,
    model: str,
    route: str,
    served_id: str,
    endpoint: str,
    stream: bool = False,
    count: int = 1,
) -> UsageRecord:
    """What is written down of refused requests: they used nothing, and no deployment."""
    return UsageRecord(
        request_id=request_id,
        key=grant.id,
        team=grant.team,
        model=model,
        route=route,
        served_id=served_id,
        deployment="",
        endpoint=endpoint,
        outcome=error.error_code or "error",
        status=error.status,
        at=time.time(),
        stream=stream,
        count=count,
        attempts=0,
    )


def _beyond(plan: Plan, deployment: DeploymentEntry) -> bool:
    most = deployment.limits.max_output_tokens
    return most is not None and (plan.sampling.max_tokens or 0) > most


def _check_limits(plan: Plan, deployment: DeploymentEntry) -> None:
    if _beyond(plan, deployment):
        raise InvalidRequest(
            f"max_tokens is {plan.sampling.max_tokens}; {deployment.served_id} makes at most "
            f"{deployment.limits.max_output_tokens}.",
            param="max_tokens",
        )
