"""A node without rows: does what it is told on stdin, and tells on stdout what happens, a JSON line each."""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import Any

import msgspec

from inference.node.compiling import Compiling
from inference.node.supervisor import ReplicaSupervisor
from inference.protocol import OptionsCheck, ReplicaSpec


def tell(**news: Any) -> None:
    print(json.dumps(news), flush=True)


def main() -> None:
    supervisor = ReplicaSupervisor()
    was_ready = False
    forms = Path(os.environ.get("FORMS", "/nowhere"))
    compiling = Compiling(forms, forms, supervisor, room=lambda: 1 << 40)
    while True:
        if supervisor.template_ready != was_ready:
            was_ready = not was_ready
            tell(template_ready=was_ready)
        compiling.tick(loading=False)
        for ended in supervisor.poll():
            tell(exit=ended.replica, reason=ended.reason, log_tail=ended.log_tail, code=ended.code)
        readable, _, _ = select.select([sys.stdin], [], [], 0.05)
        if not readable:
            continue
        line = sys.stdin.readline()
        if not line:
            supervisor.close()
            return
        command = json.loads(line)
        if "start" in command:
            spec = msgspec.convert(command["start"], ReplicaSpec)
            tell(started=spec.replica, pid=supervisor.start(spec))
        elif "check" in command:
            supervisor.check(msgspec.convert(command["check"], OptionsCheck))
        else:
            supervisor.stop(command["stop"], 20.0)


if __name__ == "__main__":
    main()
