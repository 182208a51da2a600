"""Has compiled forms made for this node's engines: one at a time, when nothing loads and memory allows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from inference.engine.forms import Shelf, wishes
from inference.node.supervisor import ReplicaSupervisor
from inference.protocol import CompileJob

log = logging.getLogger(__name__)

GIVE_UP_AFTER_S = 1800.0
# Beside the weights, which are there twice while vLLM packs them.
BUILDER_BYTES = 3 * 2**29
LOG_TAIL_BYTES = 2000


class Compiling:
    """Looks for wishes in the folder of forms; ``room`` says how many bytes nobody has reserved."""

    def __init__(
        self, folder: Path, log_dir: Path, supervisor: ReplicaSupervisor, room: Callable[[], int]
    ) -> None:
        self._folder = folder
        self._log_dir = log_dir
        self._supervisor = supervisor
        self._room = room
        self._job: CompileJob | None = None
        self._pid = 0
        self._since = 0.0

    def tick(self, *, loading: bool) -> None:
        """One look: at the builder that runs, or for the next one."""
        try:
            if self._job is not None:
                self._watch(self._job)
            elif not loading:
                self._begin()
        except Exception:  # a wish must never end a node
            log.exception("compiled forms cannot be seen to")

    def _begin(self) -> None:
        for job in wishes(self._folder):
            shelf = Shelf(self._folder, job.key)
            if shelf.has_form() or not Path(job.model_path).is_dir():
                shelf.forget_wish()
                continue
            needed = 2 * _weights(Path(job.model_path)) + BUILDER_BYTES
            if min(psutil.virtual_memory().available, self._room()) < needed:
                continue
            job = msgspec.structs.replace(job, log_path=str(self._log_dir / f"form-{job.key}.log"))
            try:
                self._pid = self._supervisor.compile(job)
            except OSError as error:
                log.warning("no builder could be started: %s", error)
                return
            self._job, self._since = job, time.monotonic()
            log.info("compiling for %s as pid %d", job.model_path, self._pid)
            return

    def _watch(self, job: CompileJob) -> None:
        if self._supervisor.helps(self._pid):
            if time.monotonic() - self._since > GIVE_UP_AFTER_S:
                self._supervisor.kill_helper(self._pid)
            return
        self._job = None
        shelf = Shelf(self._folder, job.key)
        if shelf.has_form():
            log.info("compiled for %s in %.0f s", job.model_path, time.monotonic() - self._since)
        elif shelf.is_coming() and not shelf.is_being_built():
            shelf.fail(f"the builder ended: {_tail(Path(job.log_path))}")
        if why := shelf.failure():
            log.warning("engines of %s stay eager: %s", job.model_path, why)


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
