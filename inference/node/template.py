"""The engine template: a process that has imported everything and run nothing, forked once per replica.

Started by the supervisor as ``python -m inference.node.template FD``; FD is one end of a SOCK_SEQPACKET pair.
It sends ``ready`` once its imports are done; then each packet that it receives is a ReplicaSpec, an OptionsCheck or a
CompileJob (JSON), answered by the pid (decimal) of the process that serves, checks or compiles. It forks twice, so that
this process is handed to the node, its subreaper.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
from typing import NoReturn

import msgspec

from inference.engine import environment
from inference.engine.choice import engine_class, is_vllm
from inference.node.devices import local_devices
from inference.node.prctl import die_with_parent
from inference.protocol import CompileJob, OptionsCheck, ReplicaSpec

READY = b"ready"
MAX_PACKET_BYTES = 1 << 20


OURS = ("inference.engine.check", "inference.engine.main", "inference.engine.worker")
# What an engine imports between its fork and its first token, beside vLLM's front: found with -X importtime.
EVERYWHERE = (
    "inference.engine.adapter",
    "inference.engine.builder",
    "transformers.models.llama.modeling_llama",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.gemma3",
    "vllm.model_executor.models.qwen3",
    "vllm.v1.structured_output.backend_guidance",
)
ON_CPU = (
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.attention.backends.cpu_attn",
    # What reading a compiled form imports.
    "torch._dynamo.aot_compile",
    "torch._functorch._aot_autograd.aot_autograd_result",
    "torch._inductor.codecache",
    "torch._inductor.output_code",
)


def warm(*, on_cpu: bool) -> None:
    """Import what every engine needs; on CUDA nothing here may initialise the device."""
    vllm = (*EVERYWHERE, *(ON_CPU if on_cpu else ()))
    for name in (*OURS, *(vllm if is_vllm() else ())):
        importlib.import_module(name)
    engine_class()


def run(channel: socket.socket) -> None:
    """Answer fork requests until the node closes its end."""
    # The children share these pages: keep the collector from touching, and so copying, them.
    gc.collect()
    gc.freeze()
    channel.send(READY)
    while packet := channel.recv(MAX_PACKET_BYTES):
        asked = msgspec.json.decode(packet, type=ReplicaSpec | OptionsCheck | CompileJob)  # type: ignore[arg-type]
        channel.send(str(fork_one(asked, channel)).encode())


def fork_one(asked: ReplicaSpec | OptionsCheck | CompileJob, channel: socket.socket) -> int:
    """Fork twice; returns the grandchild's pid once its middle parent is gone."""
    node = os.getppid()
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        engine = os.fork()
        if engine == 0:
            os.close(reading)
            os.close(writing)
            channel.close()
            if isinstance(asked, OptionsCheck):
                become_checker(asked, node)
            if isinstance(asked, CompileJob):
                become_builder(asked, node)
            become_engine(asked, node)
        os.write(writing, str(engine).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(middle, 0)
    with os.fdopen(reading, "rb") as pipe:
        return int(pipe.read())


def live_with(node: int) -> None:
    """Wait until the kernel has handed this process to the node, then end when the node does."""
    # The middle parent may still be alive: its end must not be taken for the node's.
    middle = os.getppid()
    while os.getppid() == middle and middle != node:
        os.sched_yield()
    die_with_parent(signal.SIGKILL, node)


def become_checker(check: OptionsCheck, node: int) -> NoReturn:
    """Answer one question about options, and end."""
    code = 1
    try:
        live_with(node)
        from inference.engine.check import answer

        answer(check)
        code = 0
    finally:
        os._exit(code)


def become_engine(spec: ReplicaSpec, node: int) -> NoReturn:
    """The engine's life, from its fork to its exit; never returns."""
    code = 1
    try:
        _settle(spec.log_path, node)
        if spec.gpus:
            # Read when CUDA is initialised, which nobody has done in the template.
            os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, spec.gpus))
        from setproctitle import setproctitle

        from inference.engine.main import serve

        setproctitle(f"mmserve engine {spec.served_id}")
        # What the template froze stays frozen: walking through it at each collection took half of a load.
        code = serve(spec)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No exit handlers of the template: they are not this process's.
        os._exit(code)


def become_builder(job: CompileJob, node: int) -> NoReturn:
    """Make one compiled form, and end."""
    code = 1
    try:
        _settle(job.log_path, node)
        from setproctitle import setproctitle

        from inference.engine.builder import build

        setproctitle(f"mmserve compiling {job.key}")
        code = 0 if build(job) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _settle(log_path: str, node: int) -> None:
    """A session and a log of its own, and the node as its parent."""
    os.setsid()
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    live_with(node)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main() -> None:
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_cpu = all(device.kind == "cpu" for device in local_devices())
    environment.prepare(on_cpu=on_cpu)
    channel = socket.socket(fileno=int(sys.argv[1]))
    warm(on_cpu=on_cpu)
    run(channel)


if __name__ == "__main__":
    main()
