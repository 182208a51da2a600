"""The metadata of a GGUF file, without its arrays.

The layout is that of ggml's docs/gguf.md. The gguf package makes an array of every string of a vocabulary: with
Gemma's 262,144 tokens that takes a hundred times as long as passing over them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def read_metadata(gguf: Path) -> dict[str, Any]:
    """Keys and values, those of arrays left out; ValueError where the file is no GGUF or ends early."""
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{gguf.name} is not a GGUF file")
        version = file.read(4)
        # The version is a small number: where its low bytes are empty, the file is of a big-endian machine.
        reader = _Reader(file, ">" if version[:2] == b"\0\0" else "<")
        try:
            _tensors, keys = reader.scalar("Q"), reader.scalar("Q")
            found = {reader.string().decode(): reader.value(reader.scalar("I")) for _ in range(keys)}
        except struct.error:
            raise ValueError(f"{gguf.name} ends within its header") from None
    return {key: value for key, value in found.items() if value is not None}


class _Reader:
    def __init__(self, file: BinaryIO, order: str) -> None:
        self.file = file
        self.order = order

    def scalar(self, code: str) -> Any:
        code = self.order + code
        return struct.unpack(code, self.file.read(struct.calcsize(code)))[0]

    def string(self) -> bytes:
        return self.file.read(self.scalar("Q"))

    def value(self, kind: int) -> Any:
        """The value of a kind; None for an array, which is passed over."""
        if kind == STRING:
            return self.string().decode(errors="replace")
        if kind != ARRAY:
            if kind not in SCALARS:
                raise ValueError(f"a GGUF header has no values of kind {kind}")
            return self.scalar(SCALARS[kind])
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in SCALARS:
            self.file.seek(count * struct.calcsize(self.order + SCALARS[kind]), 1)
        else:
            for _ in range(count):
                self.value(kind)
        return None
