"""What builder and engine must agree on about compiled forms: the key, the module, how a form is read.

Importing this imports vLLM: set the environment first (:mod:`inference.engine.environment`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.v1.engine.llm_engine import LLMEngine

from inference.engine.forms import CODE, LIBRARIES, Manifest, read_manifest
from inference.engine.options import engine_arguments
from inference.protocol import EngineOptions

FORMAT = 1
# They do not change what is computed.
NOT_IN_THE_KEY = frozenset({"model", "served_model_name", "kv_cache_memory_bytes", "disable_log_stats"})
# An operator who sets these has decided for himself.
DECIDES_ITSELF = frozenset({"enforce_eager", "compilation_config"})


def can_be_compiled(options: EngineOptions, *, on_cpu: bool) -> bool:
    """Whether this adapter compiles the engine: elsewhere vLLM compiles by itself."""
    in_this_process = options.in_process and options.tensor_parallel == 1
    return on_cpu and in_this_process and not DECIDES_ITSELF & options.extra.keys()


def form_key(model_path: str, options: EngineOptions) -> str:
    """Names the form of all engines that compute the same, on machines and software that are the same."""
    folder = Path(model_path)
    arguments = engine_arguments(model_path, options, on_cpu=True)
    parts: dict[str, Any] = {
        "format": FORMAT,
        # The libraries were compiled against what lies there.
        "software": [sys.version, torch.__version__, vllm.__version__, sys.prefix],
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor_flags()],
        "options": {name: arguments[name] for name in sorted(arguments.keys() - NOT_IN_THE_KEY)},
        "model": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted([*folder.glob("*config.json"), *folder.rglob("*.py")])
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def model_of(engine: LLMEngine) -> torch.nn.Module:
    """The model of an engine in this process."""
    found: torch.nn.Module = engine.apply_model(_itself)[0]
    return found


def tensors_of(module: torch.nn.Module) -> list[tuple[str, list[int], str]]:
    """What compiled code takes from the module."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in named]


def read_form(form: Path, model: torch.nn.Module) -> tuple[torch.nn.Module, Callable[..., Any]]:
    """The model's module that was compiled, and its compiled ``forward``; takes about half a second.

    Raises if the form is not whole, not of such a model, or would have to be compiled again.
    """
    manifest = read_manifest(form)
    module = model.get_submodule(manifest.module)
    if tensors_of(module) != manifest.tensors:
        raise ValueError("it was made of another model")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(form / LIBRARIES)
    with _as_made(manifest), _no_compiler(), (form / CODE).open("rb") as file:
        compiled: Any = torch.compiler.load_compiled_function(
            file, f_globals=type(module).forward.__globals__
        )
    # vLLM marks what varies and drops all guards; see vllm/compilation/wrapper.py.
    compiled.disable_guard_check()

    def forward(*args: Any, **kwargs: Any) -> Any:
        return compiled(module, *args, **kwargs)

    return module, forward


def instructions() -> str:
    """The vector instructions that Inductor compiles for here; asks the compiler, which takes a second."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return str(pick_vec_isa())


def _itself(model: torch.nn.Module) -> torch.nn.Module:
    return model


def _processor_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@contextmanager
def _as_made(manifest: Manifest) -> Iterator[None]:
    """Inductor finds its libraries by the command that would compile them: keep it as it was.

    The processor's instructions are not asked for again with a compiler, unless they seem to be others.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    with config.patch({"cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}):
        valid_vec_isa_list.cache_clear()
        if instructions() == manifest.instructions:
            yield
            return
    with config.patch({"cpp_cache_precompile_headers": False}):
        valid_vec_isa_list.cache_clear()
        yield


@contextmanager
def _no_compiler() -> Iterator[None]:
    """A form whose libraries do not fit would keep a serving engine busy with the compiler for half a minute."""
    from torch._inductor import cpp_builder

    def refuse(cmd_line: str, cwd: str) -> None:
        raise RuntimeError("its libraries do not fit this machine")

    usual = cpp_builder.run_compile_cmd
    cpp_builder.run_compile_cmd = refuse
    try:
        yield
    finally:
        cpp_builder.run_compile_cmd = usual
