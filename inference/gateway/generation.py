"""One request from its plan to its settlement, the same for every transport."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from inference.gateway.admission import NO_RATES, Admission, Rates, Refused
from inference.gateway.auth import KeyGrant
from inference.gateway.config import GatewayConfig
from inference.gateway.controls import Controls
from inference.gateway.decisions import DecisionLog, decision_record
from inference.gateway.flight import Flight
from inference.gateway.holding import class_of, deadline_s_of, worth_waiting_for
from inference.gateway.hub import Hub
from inference.gateway.ledger import Reservation
from inference.gateway.live import LiveState
from inference.gateway.plan import Plan
from inference.gateway.refusals import Refusals
from inference.gateway.usage import CANCELLED, UsageRecord, cost_nano, most_cost_nano, record_of
from mmserve.errors import ContextLengthExceeded, InvalidRequest, MmserveError, ModelNotLoaded, Unavailable
from routing.core.cost import Prices
from routing.core.decision import NO_CHAT_TEMPLATE, Decision, RequestFacts, decide
from routing.core.table import DeploymentEntry, RoutingTable

log = logging.getLogger(__name__)

LOADING_RETRY_S = 2.0
CLIENT_GONE = 499


def new_id() -> str:
    """An id that no other request has."""
    return secrets.token_hex(12)


def facts_of(plan: Plan, decision_id: str) -> RequestFacts:
    """What the routing core needs to know of a plan."""
    return RequestFacts(
        decision_id=decision_id,
        model=plan.model,
        chat=plan.messages is not None,
        prompt_tokens=plan.longest_token_prompt,
        max_tokens=plan.sampling.max_tokens,
    )


class Generation:
    """A request that was admitted: its flight, and what its headers say."""

    __slots__ = ("assignments", "decision", "facts", "flight", "most_cost_nano", "plan", "prices", "rates",
                 "request_id", "route")  # fmt: skip

    def __init__(
        self,
        request_id: str,
        plan: Plan,
        facts: RequestFacts,
        decision: Decision,
        rates: Rates,
        flight: Flight,
        prices: Prices,
        most_cost_nano: int,
    ) -> None:
        self.request_id = request_id
        self.plan = plan
        self.facts = facts
        self.decision = decision
        self.rates = rates
        self.flight = flight
        self.prices = prices  # of the version that serves it
        self.most_cost_nano = most_cost_nano
        self.route = route_of(decision)
        self.assignments: dict[str, str] = {}  # experiment to arm

    @property
    def fallbacks(self) -> int:
        """How many choices before the one that serves were given up."""
        chain = self.decision.chain
        return chain.index(self.flight.deployment.id) if self.flight.deployment.id in chain else 0

    @property
    def cost_nano(self) -> int:
        """What it costs by now."""
        return cost_nano(self.flight, self.prices)


def route_of(decision: Decision) -> str:
    """The route that the request named, or ""."""
    return getattr(decision, "route", None) or ""


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
        admission: Admission,
        controls: Controls,
        reply_to: str,
    ) -> None:
        self._config = config
        self._table = table
        self._live = live
        self._hub = hub
        self._admission = admission
        self._controls = controls
        self._reply_to = reply_to
        self._log = DecisionLog(config.decisions_per_s)
        self.refusals = Refusals()

    def decide(self, plan: Plan, decision_id: str) -> Decision:
        """Who would serve this; nothing is run."""
        return decide(self._table(), self._live.loads, facts_of(plan, decision_id))

    async def open(self, plan: Plan, grant: KeyGrant) -> Generation:
        """Decide, admit, dispatch; every refusal is an MmserveError (or Refused, with the key's rates)."""
        request_id = new_id()
        facts = facts_of(plan, request_id)
        decision = decide(self._table(), self._live.loads, facts)
        try:
            while decision.chosen is None and not self._live.settled:
                # This process has only just begun to hear beats: what it has not heard of may well be ready.
                await self._live.news()
                decision = decide(self._table(), self._live.loads, facts)
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
        hold = worth_waiting_for(decision, table) if decision.chosen is None else None
        if decision.chosen is None and hold is None:
            raise _nothing_serves(plan, decision, table, self._live)
        deployment = hold.deployment if hold else table.deployments[decision.chosen or ""]
        _check_limits(plan, deployment)
        now = time.time()
        deadline_s = deadline_s_of(plan, deployment)
        if hold is not None and hold.eta_s is not None and hold.eta_s > deadline_s:
            raise hold.too_late(deadline_s)
        request = plan.request(request_id, self._reply_to, now + deadline_s, class_of(plan, grant))
        flight = Flight(request, plan, grant, deployment, deadline_at=time.monotonic() + deadline_s)
        prices = table.versions[deployment.served_id].prices
        most = most_cost_nano(plan, prices, deployment)
        budgets = table.budgets_of(key=grant.id, team=grant.team, route=route_of(decision))
        reservation = Reservation(flight.job_id, most, budgets) if budgets else None
        if reservation is not None:
            flight.reservations.append(reservation)
        generation = Generation(request_id, plan, facts, decision, NO_RATES, flight, prices, most)
        load = self._live.loads.get(deployment.id)
        self._hub.add(flight)
        try:
            generation.rates = await self._admission.admit(
                request,
                job_id=flight.job_id,
                grant=grant,
                deployment=deployment,
                reserved_tokens=plan.reserved_tokens,
                drain_per_s=load.jobs_per_s if load else 0.0,
                now=now,
                hold=hold,
                reservation=reservation,
            )
        except (MmserveError, Refused):
            self._hub.remove(flight)
            raise
        except BaseException:
            # The client left while its job was being written: it may be in the queue by now.
            self._hub.remove(flight)
            await asyncio.shield(self._stop(flight))
            # Whether its tokens were reserved nobody knows: they are not given back.
            self._settle(generation, CANCELLED, CLIENT_GONE, reserved_tokens=0)
            raise
        if hold is not None:
            # Its job waits in the queue; the controller sees it there and brings the model up.
            self._admission.wake_controller()
        return generation

    async def close(self, generation: Generation, *, outcome: str, status: int) -> None:
        """End a request: stop what still runs of it, then settle."""
        flight = generation.flight
        flight.over = True
        self._hub.remove(flight)
        if outcome != "completed":
            await self._stop(flight)
            flight.completion_tokens = flight.completion_tokens or len(flight.tokens)
        self._settle(generation, outcome, status, reserved_tokens=generation.plan.reserved_tokens)

    def _settle(self, generation: Generation, outcome: str, status: int, *, reserved_tokens: int) -> None:
        """Charge it for what it used, give back the rest, and write down both."""
        flight, plan = generation.flight, generation.plan
        load = self._live.loads.get(flight.deployment.id)
        running = load.running if load else 0
        cost = cost_nano(flight, generation.prices, outcome, running=running)
        record = record_of(generation, outcome=outcome, status=status, cost=cost)
        written = b""
        if self._log.wants(outcome, record.fallbacks):
            written = decision_record(
                flight.grant,
                plan.endpoint,
                generation.facts,
                generation.decision,
                record,
                predicted_cost_nano=generation.most_cost_nano if generation.prices.priced else None,
            )
        self._admission.settle(
            flight.grant,
            record,
            reserved_tokens=reserved_tokens,
            used_tokens=flight.prompt_tokens + flight.completion_tokens,
            reservations=flight.reservations,
            decision_id=generation.decision.id,
            decision=written,
        )

    def _note_refusal(
        self, plan: Plan, grant: KeyGrant, facts: RequestFacts, decision: Decision, error: MmserveError
    ) -> None:
        error.decision_id = decision.id
        code = error.error_code or "error"
        route = route_of(decision)
        record = UsageRecord(
            request_id=decision.id,
            key=grant.id,
            team=grant.team,
            model=plan.model,
            route=route,
            served_id=decision.served_id,
            deployment="",
            endpoint=plan.endpoint,
            outcome=code,
            status=error.status,
            at=time.time(),
            stream=plan.stream,
            attempts=0,
        )
        self.refusals.count(record)
        if self._log.wants(code):
            written = decision_record(grant, plan.endpoint, facts, decision, record)
            self._admission.note(decision_id=decision.id, decision=written)

    def flush_refusals(self) -> None:
        """Write down what was refused since the last time."""
        for record in self.refusals.take():
            self._admission.note(record)

    async def _stop(self, flight: Flight) -> None:
        """Take the job out of its queue, or tell the engine that has it, or may have it."""
        if flight.replica is not None:
            self._controls.cancel(flight.replica, flight.job_id)
            return
        try:
            withdrawn = await self._admission.withdraw(flight.job_id, flight.queue)
        except MmserveError as error:
            log.warning("cannot withdraw job %s: %s", flight.job_id, error)
            withdrawn = False
        if not withdrawn:
            for replica in self._live.replicas(flight.deployment.id):
                self._controls.cancel(replica, flight.job_id)


def _check_limits(plan: Plan, deployment: DeploymentEntry) -> None:
    most = deployment.limits.max_output_tokens
    if most is not None and (plan.sampling.max_tokens or 0) > most:
        raise InvalidRequest(
            f"max_tokens is {plan.sampling.max_tokens}; {deployment.served_id} makes at most {most}.",
            param="max_tokens",
        )


def _nothing_serves(plan: Plan, decision: Decision, table: RoutingTable, live: LiveState) -> MmserveError:
    """Why no deployment is eligible, as the error that helps most."""
    served_id = decision.served_id
    entries = [table.deployments[one.id] for one in decision.candidates]
    ready = [entry for entry in entries if (load := live.loads.get(entry.id)) is not None and load.ready]
    for entry in ready:
        load = live.loads[entry.id]
        context = entry.limits.context_length or load.context_length
        prompt, output = plan.longest_token_prompt or 0, plan.sampling.max_tokens or 0
        if context and prompt + output > context:
            return ContextLengthExceeded(
                f"{served_id} has a context of {context} tokens; "
                f"the prompt has {prompt or 'an unknown number'} and up to {output} were asked for.",
                param="prompt" if prompt > output else "max_tokens",
            )
    if any(NO_CHAT_TEMPLATE in one.reasons for one in decision.candidates):
        return InvalidRequest(
            f"{served_id} has no chat template: use /v1/completions.",
            param="messages",
            code="unsupported_parameter",
        )
    given_up = next((entry for entry in entries if entry.failure), None)
    if given_up is not None:
        return ModelNotLoaded(
            f"{served_id} cannot be loaded: {given_up.failure}. When that is mended, load it again with "
            f"POST /v1/models/{served_id}/load.",
            param="model",
        )
    loading = [entry for entry in entries if entry.id in live.loads or entry.wanted_replicas]
    if loading:
        stage = next((found for entry in loading if (found := live.stage(entry.id))), "starting")
        return Unavailable(
            f"{served_id} is being loaded ({stage}).",
            param="model",
            code="model_loading",
            retry_after_s=LOADING_RETRY_S,
        )
    return ModelNotLoaded(
        f"{served_id} is not loaded. Load it with POST /v1/models/{served_id}/load.", param="model"
    )
