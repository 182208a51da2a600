"""What this process has learned of deployments from its own requests: who fails, and how long they take."""

from __future__ import annotations

from inference.gateway import metrics
from inference.gateway.flight import Flight
from inference.gateway.live import LiveState
from inference.gateway.usage import COMPLETED
from routing.core.breaker import Breaker, State
from routing.core.latency import LEAST, LatencyLearner, Tail


class Experience:
    """Told how requests began and ended; writes what follows into the columns that decisions read.

    Owned by the event loop; ``now`` is its monotonic clock.
    """

    def __init__(self, live: LiveState) -> None:
        self._live = live
        self._breakers: dict[str, Breaker] = {}
        self._learners: dict[str, LatencyLearner] = {}
        self._tails: dict[str, Tail] = {}
        self._told: dict[str, State] = {}
        self.changes = 0  # how often a breaker has changed its state, or was made

    def began(self, deployment: str, now: float) -> None:
        """A request was sent there."""
        breaker = self._breakers.get(deployment)
        if breaker is not None and breaker.state is not State.CLOSED:
            breaker.began(now)
            self._tell(deployment, breaker, now)

    def ended(self, flight: Flight, outcome: str, *, blamed: bool, now: float) -> None:
        """An answer has ended: completed, or with an error's code; ``blamed``: by the deployment's fault."""
        deployment = flight.deployment.id
        if outcome == COMPLETED:
            self.succeeded(deployment, now)
            self._learn(flight, now)
        elif blamed:
            self.failed(deployment, now)
        else:
            self.left(deployment, now)

    def left(self, deployment: str, now: float) -> None:
        """The client left, or was wrong, or had its answer elsewhere: nothing is known of the deployment."""
        breaker = self._breakers.get(deployment)
        if breaker is not None:
            breaker.left()
            self._tell(deployment, breaker, now)

    def slow_after_s(self, deployment: str, expected_s: float) -> float | None:
        """The 95th percentile of the time to a first token that is expected in so long; None: too little is known."""
        tail = self._tails.get(deployment)
        return None if tail is None or expected_s <= 0.0 else tail.p95_s(expected_s)

    def waited(self, flight: Flight, waited_s: float) -> None:
        """So long until its first token; one that was given up before would have taken as long at least."""
        if flight.expected_s > 0.0:
            self._tails.setdefault(flight.deployment.id, Tail()).note(flight.expected_s, waited_s)

    def succeeded(self, deployment: str, now: float) -> None:
        """An answer went to its last token."""
        breaker = self._breakers.get(deployment)
        if breaker is None:
            breaker = self._breakers[deployment] = Breaker()
        breaker.succeeded(now)
        if breaker.state is State.CLOSED:
            self._tell(deployment, breaker, now)

    def failed(self, deployment: str, now: float) -> None:
        """A request failed there, by no fault of its client."""
        breaker = self._breakers.get(deployment)
        if breaker is None:
            breaker = self._breakers[deployment] = Breaker()
        breaker.failed(now)
        self._tell(deployment, breaker, now)

    def sweep(self, now: float) -> None:
        """Let those be tried again whose time is over."""
        for deployment, breaker in self._breakers.items():
            if breaker.state is not State.CLOSED:
                self._tell(deployment, breaker, now)

    def lets_through(self, deployment: str, now: float) -> bool:
        """Whether its breaker lets a request pass now."""
        breaker = self._breakers.get(deployment)
        if breaker is None:
            return True
        self._tell(deployment, breaker, now)
        return breaker.lets_through(now)

    def state(self, deployment: str) -> State:
        """Of its breaker, as this process has it."""
        breaker = self._breakers.get(deployment)
        return State.CLOSED if breaker is None else breaker.state

    def states(self) -> dict[str, State]:
        """Of all breakers, by deployment."""
        return {deployment: breaker.state for deployment, breaker in self._breakers.items()}

    def _tell(self, deployment: str, breaker: Breaker, now: float) -> None:
        self._live.set_breaker(deployment, not breaker.lets_through(now))
        if self._told.get(deployment) is not breaker.state:
            self._told[deployment] = breaker.state
            self.changes += 1
            metrics.breaker(deployment, breaker.state)

    def _learn(self, flight: Flight, now: float) -> None:
        crowd, first = flight.crowd, flight.first_token_at
        # What was loaded first, or tried elsewhere before, says nothing of a replica that is up.
        if crowd is None or first is None or flight.attempt > 1 or not flight.prompt_tokens:
            return
        deployment = flight.deployment.id
        learner = self._learners.get(deployment)
        if learner is None:
            learner = self._learners[deployment] = LatencyLearner()
        if learner.seen >= LEAST:
            # What was expected before is the replicas' average, whatever the prompt: no measure of a tail.
            self.waited(flight, first - flight.begun_at)
        made, choices = flight.completion_tokens, flight.plan.choices
        steps = made / choices - 1.0
        learner.observe(
            waiting=crowd[0],
            running=crowd[1],
            prompt_tokens=flight.prompt_tokens,
            ttft_s=first - flight.begun_at,
            tpot_s=(now - first) / steps if steps > 0 else None,
        )
        self._live.learn(deployment, learner.latency())
        metrics.prediction_errors(deployment, learner.ttft_error, learner.tpot_error)
