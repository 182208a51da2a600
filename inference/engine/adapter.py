"""The one adapter over vLLM's LLMEngine, in this process or in its own (``EngineOptions.in_process``).

Importing this imports vLLM: set the environment first (:mod:`inference.engine.environment`).
"""

from __future__ import annotations

import logging
import os
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from inference.capacity.ladder import ASLEEP, DISCARDED, KV_RELEASED, RESTING, SERVING
from inference.engine.answer import Answer
from inference.engine.base import EventTail, Output, Prepared, TellStage, Usage
from inference.engine.compiling import can_be_compiled
from inference.engine.footprint import MEASURE, Footprint
from inference.engine.lean import without_tokenizer_pool, without_unused_packing
from inference.engine.options import GUIDED_OFF, engine_arguments, without_draft
from inference.engine.overtaking import PRIORITY, with_overtaking
from inference.engine.preparation import Body, Preparation
from inference.engine.resume import led_detokenizer
from inference.engine.sampling import constraints, refusal
from inference.engine.takeover import Takeover
from inference.engine.weights import checkpoint_bytes, counted
from inference.protocol import DELTA, EngineOptions, GenerateRequest

logger = logging.getLogger(__name__)

LIGHT_CHARACTERS = 4_000
CANARY = "The capital of France is"
SLEEP_LEVELS = {ASLEEP: 1, DISCARDED: 2}


def _ignore(_stage: str, /, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
    """Nobody wants to know the stage."""


class VllmEngine:
    """Answers jobs with vLLM. One vLLM request a prompt, named ``<job id>:<prompt index>``."""

    def __init__(
        self,
        model_path: str,
        options: EngineOptions,
        tell_stage: TellStage = _ignore,
        *,
        forms: str = "",
    ) -> None:
        """``forms`` is the folder of compiled forms; without one the engine stays as it starts."""
        total_bytes = checkpoint_bytes(model_path, *filter(None, [options.draft_path]))
        tell_stage("loading weights", 0 if options.in_process else None, total_bytes)
        # Read when the engine is made, so one template process can fork engines of both kinds.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if options.in_process else "1"
        without_tokenizer_pool()
        without_unused_packing()
        with_overtaking()
        arguments = engine_arguments(model_path, options, on_cpu=current_platform.is_cpu())
        with counted(lambda done_bytes: tell_stage("loading weights", done_bytes, total_bytes)):
            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        config = self._engine.vllm_config
        self._tokenizer: Any = self._engine.renderer.get_tokenizer()
        self._tokenizer.encode("")  # switches off truncation that a tokenizer.json may bring; see lean.py
        self.context_length: int = config.model_config.max_model_len
        self.max_streams = options.max_streams
        # vLLM's sleep mode, which a CPU does not have.
        self.rungs: tuple[str, ...] = RESTING if config.model_config.enable_sleep_mode else ()
        if options.draft_path is not None:
            # vLLM's reload_weights brings the target's back only.
            self.rungs = tuple(rung for rung in self.rungs if rung != DISCARDED)
        self._rung = SERVING
        self._in_process = options.in_process
        vocabulary = max(self._tokenizer.max_token_id + 1, config.model_config.get_vocab_size())
        self._preparation = Preparation(
            config, self._tokenizer, vocabulary=vocabulary, guided=options.guided_decoding != GUIDED_OFF
        )
        self._kv_tokens = max(1, (config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size)
        self._kv_in_use: dict[str, int] = {}  # tokens by job
        self._answers: dict[str, Answer] = {}
        self._request_ids: dict[str, list[str]] = {}
        self._ready_made: list[Output] = []
        self._takeover: Takeover | None = None
        if forms and can_be_compiled(options, on_cpu=current_platform.is_cpu()):
            tell_stage("taking over its compiled form")
            # The form is the target's; a draft stays eager.
            self._takeover = Takeover(self._engine, forms, model_path, without_draft(options))
            self._takeover.advance()
        self._footprint = self._measured()

    @property
    def form(self) -> str:
        return self._takeover.form if self._takeover else ""

    def rest(self) -> None:
        if self._takeover is not None and not self.is_busy():
            self._takeover.advance()

    def is_light(self, request: GenerateRequest) -> bool:
        size = sum(map(len, request.prompts or ()))
        size += sum(len(str(message.get("content"))) for message in request.messages or ())
        return size <= LIGHT_CHARACTERS and not constraints(request.sampling)

    def prepare(self, request: GenerateRequest) -> Prepared:
        return self._preparation.prepare(request)

    def add(self, job_id: str, request: GenerateRequest, prepared: Prepared) -> None:
        body: Body = prepared.body
        answer = Answer(request, body.prompts, self._tokenizer)
        limit = request.sampling.max_tokens
        if limit is not None and request.resume_token_ids and len(request.resume_token_ids) >= limit:
            # The engine died between the last token and the word that it was the last.
            self._ready_made.append(
                Output(job_id, [[DELTA, 0, "", [], None, "length", None]], answer.usage())
            )
            return
        self._answers[job_id] = answer
        self._request_ids[job_id] = []
        self._kv_in_use[job_id] = sum(prepared.prompt_tokens) + len(request.resume_token_ids)
        try:
            for index, (prompt, params) in enumerate(zip(body.prompts, body.params, strict=True)):
                request_id = f"{job_id}:{index}"
                tokens = prompt.token_ids + request.resume_token_ids
                internal_id = self._engine.add_request(
                    request_id, tokens_input(tokens), params, priority=PRIORITY.get(request.priority, 0)
                )
                self._request_ids[job_id].append(request_id)
        except Exception as error:
            self.abort(job_id)
            raise refusal(error, request.sampling) from error
        if request.resume_token_ids:
            state = self._engine.output_processor.request_states[internal_id]
            state.detokenizer = led_detokenizer(
                self._tokenizer,
                request_id=internal_id,
                params=body.params[0],
                min_tokens=request.sampling.min_tokens,
                prompt_token_ids=body.prompts[0].token_ids,
                answer_token_ids=request.resume_token_ids,
            )

    def step(self) -> list[Output]:
        made, self._ready_made = self._ready_made, []
        if not self._answers:
            return made
        tails: dict[str, list[EventTail]] = {}
        for output in self._engine.step():
            job_id, _, prompt_index = output.request_id.rpartition(":")
            answer = self._answers.get(job_id)
            if answer is not None:
                tails.setdefault(job_id, []).extend(answer.note(int(prompt_index), output))
                self._kv_in_use[job_id] += len(output.outputs)
        return made + [self._output(job_id, found) for job_id, found in tails.items()]

    def abort(self, job_id: str) -> Usage | None:
        self._ready_made = [output for output in self._ready_made if output.job_id != job_id]
        answer = self._answers.get(job_id)
        if answer is None:
            return None
        self._engine.abort_request(self._request_ids[job_id])
        self._forget(job_id)
        return answer.usage()

    def is_busy(self) -> bool:
        return bool(self._answers or self._ready_made)

    def kv_usage(self) -> float:
        """From token counts, for both kinds of engine; a shared prefix counts for each that shares it."""
        return min(1.0, sum(self._kv_in_use.values()) / self._kv_tokens)

    def memory(self) -> dict[str, int]:
        return self._footprint.look() if self._footprint is not None else {}

    def _measured(self) -> Footprint | None:
        try:
            return Footprint(self._engine.collective_rpc(MEASURE))
        except Exception:
            # A model that is built otherwise than expected serves all the same; its estimate stays a calculation.
            logger.exception("what was loaded cannot be measured")
            return None

    def sleep(self, rung: str) -> int:
        before = self._free_bytes()
        if rung == KV_RELEASED:
            self._engine.sleep(level=0)  # no more than a pause
            self._engine.release_kv_cache_memory()
        else:
            # What is released already vLLM leaves as it is.
            self._engine.sleep(level=SLEEP_LEVELS[rung])
        self._rung = rung
        return max(0, self._free_bytes() - before)

    def wake(self) -> None:
        if self._rung == DISCARDED:
            # Without the reload it talks gibberish (vllm-project/vllm issue 29341).
            self._engine.wake_up(["weights"])
            self._engine.collective_rpc("reload_weights")
            self._engine.wake_up(["kv_cache"])
        elif self._rung == KV_RELEASED:
            self._engine.wake_up(["kv_cache"])
        else:
            self._engine.wake_up()
        self._rung = SERVING

    def fingerprint(self) -> str:
        return " ".join(self._engine.collective_rpc("weight_sample"))

    def canary(self) -> list[int]:
        prompt = self._tokenizer.encode(CANARY) or [0]
        params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
        self._engine.add_request("canary", tokens_input(prompt), params)
        said: list[int] = []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                said = list(output.outputs[0].token_ids)
        return said

    def _free_bytes(self) -> int:
        """Of the worker that has least."""
        return min(self._engine.collective_rpc("free_bytes"))

    def close(self) -> None:
        # In process, vLLM would take a second to free what the end of the process frees at once.
        if not self._in_process:
            self._engine.engine_core.shutdown()

    def _output(self, job_id: str, tails: list[EventTail]) -> Output:
        answer = self._answers[job_id]
        if answer.error is not None:
            self.abort(job_id)
            return Output(job_id, tails, error=answer.error)
        if not answer.is_finished:
            return Output(job_id, tails)
        self._forget(job_id)
        return Output(job_id, tails, usage=answer.usage())

    def _forget(self, job_id: str) -> None:
        del self._answers[job_id], self._request_ids[job_id], self._kv_in_use[job_id]
