"""The wire's sampling parameters as vLLM's."""

from __future__ import annotations

import re
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from inference.protocol import GenerateRequest, Sampling
from mmserve.errors import EngineLost, InvalidRequest

SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "bad_words",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "logprobs",
)
# vLLM's names of the constraints, by ours.
CONSTRAINTS = {
    "json_schema": "json",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
_NAMES = sorted({*SAME, *CONSTRAINTS, "max_tokens", "min_tokens", "logit_bias"}, key=len, reverse=True)
_NAMED = re.compile(rf"\b({'|'.join(_NAMES)})\b")


def sampling_params(request: GenerateRequest, *, max_tokens: int, min_tokens: int) -> SamplingParams:
    """vLLM's parameters for each prompt of the request."""
    sampling = request.sampling
    if sampling.prompt_logprobs is not None and not request.echo:
        raise InvalidRequest("prompt_logprobs needs echo", param="prompt_logprobs")
    given: dict[str, Any] = {name: getattr(sampling, name) for name in SAME}
    if request.echo and not request.resume_token_ids:
        given["prompt_logprobs"] = (
            sampling.logprobs if sampling.prompt_logprobs is None else sampling.prompt_logprobs
        )
    try:
        return SamplingParams(
            **given,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            logit_bias=logit_bias(sampling.logit_bias),
            structured_outputs=structured_outputs(sampling),
            output_kind=RequestOutputKind.DELTA,
        )
    except (VLLMValidationError, ValueError, TypeError, OverflowError) as error:
        raise refusal(error, sampling) from None


def logit_bias(given: dict[str, float] | None) -> dict[int, float] | None:
    """Token ids come as strings, as JSON has it."""
    if given is None:
        return None
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise InvalidRequest("logit_bias takes token ids as keys", param="logit_bias") from None


def constraints(sampling: Sampling) -> list[str]:
    """The names of the structured output constraints that are set."""
    return [name for name in CONSTRAINTS if getattr(sampling, name) not in (None, False)]


def constraint(sampling: Sampling) -> str | None:
    """The name of the structured output constraint that is set; more than one is refused."""
    found = constraints(sampling)
    if len(found) > 1:
        raise InvalidRequest(f"{found[0]} and {found[1]} exclude each other", param=found[1])
    return found[0] if found else None


def structured_outputs(sampling: Sampling) -> StructuredOutputsParams | None:
    name = constraint(sampling)
    return StructuredOutputsParams(**{CONSTRAINTS[name]: getattr(sampling, name)}) if name else None


def check_resumable(request: GenerateRequest) -> None:
    """Refuse to continue what would not go on exactly as it would have."""
    sampling = request.sampling
    if sampling.n != 1 or len(request.prompts or ()) > 1:
        raise InvalidRequest("only a request with one choice can be continued", param="resume_token_ids")
    if constraint(sampling):
        raise EngineLost("the engine died, and structured output cannot be continued in its middle")
    if sampling.presence_penalty or sampling.frequency_penalty:
        raise EngineLost("the engine died, and penalties on the answer's tokens cannot be continued exactly")


def refusal(error: Exception, sampling: Sampling) -> InvalidRequest:
    """vLLM's refusal, with the parameter named: as vLLM says, or as its message does."""
    message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    param = getattr(error, "parameter", None)
    if param is None:
        named = _NAMED.search(message)
        param = constraint(sampling) or (named.group(1) if named else None)
    return InvalidRequest(message, param=param)
