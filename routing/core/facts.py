"""What a decision needs to know of a request; nothing of its text."""

from __future__ import annotations

from dataclasses import dataclass

from routing.core.route import NO_WISHES, Wishes

# What is assumed to be made when the client sets no bound.
USUAL_OUTPUT_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """One request as the router sees it, and as decisions are kept for replays."""

    decision_id: str
    model: str
    chat: bool = False
    prompt_tokens: int | None = None  # known only when the prompt came as tokens
    # Never fewer than the prompt has; None where nobody counted, since only a choice among contexts needs it.
    prompt_tokens_bound: int | None = None
    # By versions (served ids) whose own tokenizer has counted: what a text has; of a chat, with the most that a
    # template may add.
    counted: tuple[tuple[str, int], ...] = ()
    prompt_tokens_estimate: int = 0  # about: for cost and latency
    max_tokens: int | None = None
    choices: int = 1
    deadline_s: float | None = None  # the client's own; each deployment has its most
    asks: tuple[str, ...] = ()  # capabilities that the body itself needs: json, tools, embedding
    wishes: Wishes = NO_WISHES
    # Who asks: patterns of the models that the key may use (none: all), and the units of experiments.
    allowed: tuple[str, ...] = ()
    key: str = ""
    user: str = ""
    session: str = ""
    # What experiments filter by besides; filled only while there are experiments.
    team: str = ""
    language: str = ""
    tags: frozenset[str] = frozenset()
    # What is left of the tightest budget that this request counts against.
    budget_left_usd: float | None = None
    budget: str = ""
    # routing.core.scorer: the features of the prompt, where a scorer is to judge by them.
    traits: tuple[float, ...] | None = None

    @property
    def prompt_tokens_about(self) -> int:
        """The best count at hand."""
        return self.prompt_tokens_estimate if self.prompt_tokens is None else self.prompt_tokens

    @property
    def output_tokens_about(self) -> int:
        """How many tokens may be made in all choices together."""
        return (USUAL_OUTPUT_TOKENS if self.max_tokens is None else self.max_tokens) * self.choices

    @property
    def request(self) -> str:
        """The request as an experiment's unit."""
        return self.decision_id

    @property
    def endpoint(self) -> str:
        """What experiments filter by."""
        return "chat.completions" if self.chat else "completions"
