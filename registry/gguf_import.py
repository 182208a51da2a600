"""GGUF to bf16 safetensors, with the tokenizer and chat template that the GGUF file holds.

The conversion runs in a process of its own, so that torch and the weights are gone from the worker when it
ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

from django.conf import settings

from mmserve.errors import InvalidRequest
from registry.gguf_header import read_metadata
from registry.gguf_tokens import apply, special_tokens
from registry.report import Report

PERCENT = re.compile(r"(\d{1,3})%\|")
LAST_LINES = 5
NICENESS = 10
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def convert(gguf: Path, into: Path, report: Report) -> None:
    """Convert a GGUF file into a folder; InvalidRequest has the last words of a conversion that failed."""
    with gguf.open("rb") as reader:
        if reader.read(4) != b"GGUF":
            raise InvalidRequest(f"{gguf.name} is not a GGUF file")
    total = gguf.stat().st_size
    report(0, total)
    process = subprocess.Popen(
        [sys.executable, "-m", "registry.gguf_import", str(gguf), str(into)],
        cwd=settings.BASE_DIR,
        env={**os.environ, **OFFLINE},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: deque[str] = deque(maxlen=LAST_LINES)
    reached = 0
    with process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if percent := PERCENT.search(line):
                    # The weights are read with one bar and placed with another, which begins at 0 again.
                    reached = max(reached, min(int(percent[1]), 100))
                    report(total * reached // 100, total)
                elif line.strip():
                    said.append(line.strip())
            status = process.wait()
        finally:
            process.kill()
    if status:
        raise InvalidRequest(
            f"{gguf.name} could not be converted: {said[-1] if said else f'exit status {status}'}"
        )


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it dies, so does the conversion."""
    # Not through sys.stdin: its lock, held here, would stop the interpreter from ending.
    os.read(0, 1)
    os._exit(1)


def main(gguf: Path, into: Path) -> None:
    """The converting process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What serves on this machine goes first.
    os.nice(NICENESS)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(gguf.parent)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights were dequantized on the way in: without this the checkpoint would claim to be GGUF still.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(str(into))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    apply(special_tokens(read_metadata(gguf)), tokenizer)
    tokenizer.save_pretrained(str(into))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
