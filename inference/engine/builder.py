"""Makes the compiled form of an engine, in a process of its own that gives way to all others.

vLLM compiles the model ahead of time itself (``VLLM_USE_AOT_COMPILE``); what it saves is kept with Inductor's
libraries beside it, since without them each load would run the C++ compiler again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from inference.engine.forms import CODE, HALF_MADE, LIBRARIES, MANIFEST, Manifest, Shelf, digests
from inference.engine.options import engine_arguments
from inference.protocol import CompileJob

logger = logging.getLogger(__name__)


def build(job: CompileJob) -> bool:
    """Make the form, or write down why not. False if another process of this machine builds already."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    shelf = Shelf(job.folder, job.key)
    with _alone(Path(job.folder)) as is_alone:
        if not is_alone:
            return False
        _give_way()
        try:
            shelf.building.mkdir()
            shelf.keep(_made(job, shelf.building))
        except Exception as error:  # noqa: BLE001 - whatever it is, engines stay as they are
            logger.exception("the form of %s could not be made", job.model_path)
            shelf.fail(f"{type(error).__name__}: {error}")
        finally:
            shutil.rmtree(shelf.building, ignore_errors=True)
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "builder.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        for half_made in folder.glob(f"*{HALF_MADE}"):
            shutil.rmtree(half_made, ignore_errors=True)
        yield True


def _give_way() -> None:
    """Only what nobody else wants of the processors; and the first to go when memory is short."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _made(job: CompileJob, work: Path) -> Path:
    """A whole form in the folder ``work``."""
    os.environ |= {
        "TORCH_COMPILE_DISABLE": "0",
        "VLLM_USE_AOT_COMPILE": "1",
        "VLLM_DISABLE_COMPILE_CACHE": "0",
        "VLLM_CACHE_ROOT": str(work / "vllm"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    import torch._dynamo.config
    import torch._inductor.config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from inference.engine.compiling import instructions, model_of, tensors_of
    from inference.engine.lean import without_tokenizer_pool

    torch._dynamo.config.disable = False
    # Headers are part of the compiler's command and lie outside the form.
    torch._inductor.config.cpp_cache_precompile_headers = False
    without_tokenizer_pool()
    arguments = engine_arguments(job.model_path, job.options, on_cpu=True) | {"enforce_eager": False}
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    name, module = _compiled_module(model_of(engine))
    saved = Path(module._aot_compilation_path)
    form = work / "form"
    form.mkdir()
    shutil.copy(saved, form / CODE)
    shutil.copytree(
        os.environ["TORCHINDUCTOR_CACHE_DIR"],
        form / LIBRARIES,
        ignore=shutil.ignore_patterns("locks", "aotautograd", "fxgraph"),
    )
    manifest = Manifest(
        module=name, tensors=tensors_of(module), instructions=instructions(), sha256=digests(form)
    )
    (form / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return form


def _compiled_module(model: Any) -> tuple[str, Any]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if getattr(module, "aot_compiled_fn", None) is not None
    ]
    if len(found) != 1:
        raise ValueError(f"vLLM compiled {len(found)} modules of it, not one")
    return found[0]
