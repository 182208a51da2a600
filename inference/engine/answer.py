"""One job's answer as it comes out of vLLM: its deltas, its echo, its counts."""

from __future__ import annotations

from typing import Any

from inference.engine import logprobs
from inference.engine.base import EventTail, Usage
from inference.engine.prompts import Prompt, Tokenizer
from inference.protocol import DELTA, GenerateRequest
from mmserve.errors import InvalidRequest, MmserveError


class Answer:
    """Follows a job from its first delta to its last."""

    def __init__(self, request: GenerateRequest, prompts: list[Prompt], tokenizer: Tokenizer) -> None:
        self._n = request.sampling.n
        self._top = request.sampling.logprobs
        self._prompt_top = request.sampling.prompt_logprobs if request.echo else None
        if self._prompt_top is None:
            self._prompt_top = self._top
        self._silent = request.sampling.max_tokens == 0
        self._prompts = prompts
        self._tokenizer = tokenizer
        # A continued answer has had its echo.
        echoes = request.echo and not request.resume_token_ids
        self._echo_due = set(range(self._n * len(prompts))) if echoes else set()
        self._unfinished = len(prompts)
        self._completion_tokens = len(request.resume_token_ids)
        self._cached_tokens = [0] * len(prompts)
        self.error: MmserveError | None = None

    def note(self, prompt_index: int, output: Any) -> list[EventTail]:
        """The event tails of one RequestOutput."""
        tails: list[EventTail] = []
        self._cached_tokens[prompt_index] = output.num_cached_tokens or 0
        for choice in output.outputs:
            index = prompt_index * self._n + choice.index
            if choice.finish_reason == "error":
                self.error = InvalidRequest("the structured output constraint could not be compiled")
                return tails
            if index in self._echo_due:
                self._echo_due.discard(index)
                tails.append(self._echo(index, prompt_index, output.prompt_logprobs))
            if self._silent:
                tails.append([DELTA, index, "", [], None, "length", None])
                continue
            token_ids = list(choice.token_ids)
            self._completion_tokens += len(token_ids)
            found = None
            if self._top is not None and choice.logprobs is not None:
                found = logprobs.entries(token_ids, choice.logprobs, self._top)
            tails.append(
                [DELTA, index, choice.text, token_ids, found, choice.finish_reason, choice.stop_reason]
            )
        if output.finished:
            self._unfinished -= 1
        return tails

    @property
    def is_finished(self) -> bool:
        return self._unfinished == 0

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=sum(len(prompt.token_ids) for prompt in self._prompts),
            completion_tokens=self._completion_tokens,
            cached_tokens=sum(self._cached_tokens),
        )

    def _echo(self, index: int, prompt_index: int, found: Any) -> EventTail:
        prompt = self._prompts[prompt_index]
        text = self._tokenizer.decode(prompt.token_ids) if prompt.text is None else prompt.text
        entries = None
        if self._prompt_top is not None and found is not None:
            entries = logprobs.entries(prompt.token_ids, found, self._prompt_top)
        return [DELTA, index, text, list(prompt.token_ids), entries, None, None]
