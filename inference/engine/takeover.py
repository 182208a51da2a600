"""An engine serves at once, eagerly; when its compiled form is there, it goes on with that.

The form replaces the ``forward`` of the model's inner module, over the same weights. Before anybody is answered by
it, it must compute what the module itself computes; whatever goes wrong, then or later, the engine goes on eagerly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.v1.engine.llm_engine import LLMEngine

from inference.engine.compiling import form_key, model_of, read_form
from inference.engine.forms import Shelf
from inference.protocol import COMPILED, COMPILING, EAGER, CompileJob, EngineOptions

# A prompt, then steps of one token: shapes that differ for the compiler. Common tokens, since the first ids are special
# ones that were hardly trained; and the same ones after the prompt, whatever the model would rather say.
CANARY = tuple(range(400, 1040, 40))
AFTER_IT, STEPS = 510, 4
# Of a token's hidden state, at the median: what bf16 makes of the first token of all, which the others attend to, is
# mostly noise. Compiled code rounds elsewhere.
TOLERANCE, TOLERANCE_FLOAT32 = 0.1, 1e-3

logger = logging.getLogger(__name__)

Forward = Callable[..., Any]


class Takeover:
    """Owned by the thread that steps the engine; asked only while nothing is in the batch."""

    def __init__(self, engine: LLMEngine, folder: str, model_path: str, options: EngineOptions) -> None:
        key = form_key(model_path, options)
        self.form = EAGER
        self._engine = engine
        self._vocabulary = engine.vllm_config.model_config.get_vocab_size()
        self._shelf = Shelf(folder, key)
        self._job = CompileJob(key=key, folder=folder, model_path=model_path, options=options)
        self._is_over = False

    def advance(self) -> None:
        """Take the form if it is there, else see to it that one is made. Takes up to a second when it is taken."""
        if self._is_over:
            return
        if self._shelf.has_form():
            self._is_over = True
            self._take()
        elif why := self._shelf.failure():
            self._is_over = True
            self.form = EAGER
            logger.warning("stays eager: its compiled form failed: %s", why)
        else:
            self._shelf.ask(self._job)
            self.form = COMPILING

    def _take(self) -> None:
        started = time.perf_counter()
        try:
            with self._shelf.trying():
                module, forward = read_form(self._shelf.form, model_of(self._engine))
                eager = module.forward
                expected = self._walk(module, eager)
                found = self._walk(module, forward)
                _compare(expected, found)
                module.forward = self._guarded(module, eager, forward)
        except Exception as error:
            logger.exception("stays eager: its compiled form cannot be used")
            self._shelf.fail(f"{type(error).__name__}: {error}")
            self.form = EAGER
        else:
            self.form = COMPILED
            logger.info("goes on compiled; taking the form over took %.2f s", time.perf_counter() - started)

    def _walk(self, module: torch.nn.Module, forward: Forward) -> list[torch.Tensor]:
        """What the module makes of the canary, step by step, computed by ``forward``; raises what that raised."""
        seen: list[torch.Tensor] = []
        raised: list[Exception] = []
        eager = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                made = forward(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - the engine's step must end as usual
                raised.append(error)
                return eager(*args, **kwargs)
            seen.append(made.detach().clone())
            return made

        module.forward = watched
        try:
            prompt = [token % self._vocabulary for token in CANARY]
            always = SamplingParams(
                max_tokens=STEPS,
                temperature=0.0,
                ignore_eos=True,
                allowed_token_ids=[AFTER_IT % self._vocabulary],
            )
            self._engine.add_request("canary", tokens_input(prompt), always)
            while self._engine.has_unfinished_requests():
                self._engine.step()
        finally:
            del module.forward
        if raised:
            raise raised[0]
        return seen

    def _guarded(self, module: torch.nn.Module, eager: Forward, forward: Forward) -> Forward:
        """Compiled code that fails in a step costs this step's time, and nobody's answer."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return forward(*args, **kwargs)
            except Exception as error:
                logger.exception("goes on eagerly: its compiled form failed in a step")
                self._shelf.fail(f"in a step: {type(error).__name__}: {error}")
                self.form = EAGER
                del module.forward
                return eager(*args, **kwargs)

        return guarded


def _compare(expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    if [one.shape for one in expected] != [one.shape for one in found]:
        raise ValueError("it computes other shapes")
    for shape in {one.shape for one in expected}:
        alike = [at for at, one in enumerate(expected) if one.shape == shape]
        one, other = (torch.cat([made[at] for at in alike]) for made in (expected, found))
        bound = TOLERANCE_FLOAT32 if one.dtype == torch.float32 else TOLERANCE
        one, other = one.double(), other.double()
        off = float(((one - other).norm(dim=-1) / one.norm(dim=-1)).median())
        if not off <= bound:
            raise ValueError(f"it computes something else: {off:.2%} off")
