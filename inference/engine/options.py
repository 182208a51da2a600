"""An operator's engine options as vLLM's arguments."""

from __future__ import annotations

from typing import Any

import msgspec

from inference.capacity.abilities import DRAFT_MODEL
from inference.engine.footprint import EXTENSION
from inference.protocol import EngineOptions
from mmserve.errors import InvalidRequest

GUIDED_OFF = "off"
# An operator's ``extra`` may not move these: the worker and the memory budget rely on them.
RESERVED = frozenset(
    {
        "model",
        "served_model_name",
        "kv_cache_memory_bytes",
        "max_num_seqs",
        "scheduling_policy",
        "disable_log_stats",
        "worker_extension_cls",
    }
)


def engine_arguments(model_path: str, options: EngineOptions, *, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs."""
    refused = RESERVED & options.extra.keys()
    if refused:
        raise InvalidRequest(f"extra may not set {sorted(refused)[0]}", param=f"extra.{sorted(refused)[0]}")
    arguments: dict[str, Any] = {
        "model": model_path,
        "served_model_name": "model",
        "dtype": options.dtype,
        "max_model_len": options.context_length,
        "max_num_seqs": options.max_streams,
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        "enable_prefix_caching": options.prefix_caching,
        "trust_remote_code": options.trust_remote_code,
        "scheduling_policy": "priority",
        "disable_log_stats": True,
        "worker_extension_cls": EXTENSION,
        # One backend for all requests: with "auto" the first request would choose for those after it.
        "structured_outputs_config": {
            "backend": "guidance" if options.guided_decoding == GUIDED_OFF else options.guided_decoding
        },
        "tensor_parallel_size": options.tensor_parallel,
        "quantization": options.quantization,
    }
    if options.speculation is not None:
        arguments["speculative_config"] = _speculation(options)
    if options.max_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = options.max_batched_tokens
    if options.in_process and options.tensor_parallel == 1:
        arguments["distributed_executor_backend"] = "uni"
    if not on_cpu:
        # The ladder's middle rungs; on a CPU vLLM refuses it.
        arguments["enable_sleep_mode"] = True
    if on_cpu:
        # See environment.py: compiling is slow, and what it makes is not faster here.
        arguments["enforce_eager"] = True
    return {**arguments, **options.extra}


def without_draft(options: EngineOptions) -> EngineOptions:
    """The same engine, where nobody guesses for it; what else it does is not a draft's to change."""
    if options.speculation != DRAFT_MODEL:
        return options
    return msgspec.structs.replace(options, speculation=None, draft_path=None)


def _speculation(options: EngineOptions) -> dict[str, Any]:
    found: dict[str, Any] = {
        "method": options.speculation,
        "num_speculative_tokens": options.speculative_tokens,
    }
    if options.speculation == DRAFT_MODEL:
        if options.draft_path is None:
            raise InvalidRequest("draft_model needs a draft", param="draft")
        return {**found, "model": options.draft_path}
    # The longest run of tokens that is looked up in the prompt (Saxena 2023, prompt lookup decoding).
    return {**found, "prompt_lookup_max": options.speculative_tokens}
