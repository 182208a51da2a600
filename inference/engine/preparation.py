"""All that is done to a request before it joins the batch, away from the engine's own thread."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm import SamplingParams

from inference.engine.base import Prepared
from inference.engine.prompts import Prompt, Tokenizer, output_budget, tokenized
from inference.engine.sampling import check_resumable, constraint, refusal, sampling_params
from inference.protocol import GenerateRequest
from mmserve.errors import InvalidRequest


class Body(NamedTuple):
    """A prepared request: one prompt and its parameters each."""

    prompts: list[Prompt]
    params: list[SamplingParams]


class Preparation:
    """Checks, renders and tokenizes for one model."""

    def __init__(
        self, vllm_config: Any, tokenizer: Tokenizer, *, vocabulary: int, guided: bool = True
    ) -> None:
        self._config = vllm_config
        self._tokenizer = tokenizer
        self._context: int = vllm_config.model_config.max_model_len
        self._vocabulary = vocabulary
        self._guided = guided

    def prepare(self, request: GenerateRequest) -> Prepared:
        """The request, ready for the batch; raises an error that names the parameter."""
        if request.resume_token_ids:
            check_resumable(request)
            self._check_tokens(request.resume_token_ids)
        prompts = tokenized(request, self._tokenizer, context=self._context, vocabulary=self._vocabulary)
        body = Body(prompts, [self._params(prompt, request) for prompt in prompts])
        counts = [len(prompt.token_ids) for prompt in prompts]
        return Prepared(counts, request.sampling.n * len(prompts), body)

    def _params(self, prompt: Prompt, request: GenerateRequest) -> SamplingParams:
        sampling = request.sampling
        if not self._guided and (named := constraint(sampling)):
            raise InvalidRequest("this deployment's guided decoding is off", param=named)
        field = "messages" if request.messages is not None else "prompt"
        budget = output_budget(len(prompt.token_ids), sampling.max_tokens, self._context, field)
        resumed = len(request.resume_token_ids)
        # vLLM makes at least one token; for "no tokens" (echo alone) it is thrown away.
        max_tokens = max(1, budget - resumed)
        min_tokens = max(0, sampling.min_tokens - resumed)
        if sampling.min_tokens > budget:
            raise InvalidRequest(f"min_tokens is larger than max_tokens ({budget})", param="min_tokens")
        params = sampling_params(request, max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens))
        try:
            params.verify(
                self._config.model_config,
                self._config.speculative_config,
                self._config.structured_outputs_config,
                self._tokenizer,
            )
        except Exception as error:  # noqa: BLE001 grammar compilers raise what they like; it is this request's fault
            raise refusal(error, sampling) from None
        return params

    def _check_tokens(self, token_ids: list[int]) -> None:
        if not all(0 <= token < self._vocabulary for token in token_ids):
            raise InvalidRequest("a token id is not in the vocabulary", param="resume_token_ids")
