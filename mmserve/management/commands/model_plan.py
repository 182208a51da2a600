"""`manage.py model_plan ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from inference.capacity.estimate import DTYPE_BYTES, QUANTIZED_BYTES, gib
from inference.plan import plan_of
from mmserve.command import DataCommand
from mmserve.errors import InvalidRequest
from registry.lookup import find_version


class Command(DataCommand):
    help = (
        "What a version would take of memory, by part, and where it would fit; nothing is loaded. Without options: "
        "its deployment as it is edited. "
        "Exit codes: 0 done (also where it does not fit: it says so), 3 no such model, 5 a wrong value."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="name, name@version or name@alias")
        parser.add_argument("--context-length", type=int, help="tokens; the model's own if left out")
        parser.add_argument("--streams", type=int, help="of the whole context at once")
        parser.add_argument("--kv-cache-bytes", type=int, help="in place of --streams")
        parser.add_argument("--dtype", choices=("auto", *DTYPE_BYTES))
        parser.add_argument("--quantization", choices=tuple(QUANTIZED_BYTES), help="of the weights, on load")
        parser.add_argument("--tensor-parallel", type=int, help="devices that share one replica")
        parser.add_argument("--draft", help="name@version of a draft model (speculative decoding)")

    def run(self, *, id: str, **options: Any) -> dict[str, Any]:
        names = (
            "context_length",
            "streams",
            "kv_cache_bytes",
            "dtype",
            "quantization",
            "tensor_parallel",
            "draft",
        )
        asked = {name: options[name] for name in names if options[name] is not None}
        for name, value in asked.items():
            if isinstance(value, int) and value < 1:
                raise InvalidRequest(f"{name} is {value}, not at least 1", param=name)
        found = plan_of(find_version(id), **asked)
        if options["json"]:
            return found
        found["devices"] = "; ".join(_on_device(one) for one in found["devices"])
        found["total_bytes"] = gib(found["total_bytes"])
        rows: dict[str, Any] = {}
        for name, value in found.items():
            if name == "parts":
                rows |= {f"  {part}": gib(count) for part, count in value.items()}
            else:
                rows[name] = value
        return rows


def _on_device(one: dict[str, Any]) -> str:
    """``here/cpu:0 (cpu): 3.1 of 9.0 GiB free, up to 12 streams``."""
    streams = "" if one["streams"] is None else f", up to {one['streams']} streams"
    needs = f"{gib(one['needed_bytes'])} of {gib(one['free_bytes'])} free"
    return f"{one['device']} ({one['kind']}): {needs}{streams if one['fits'] else ', does not fit'}"
