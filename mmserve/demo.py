"""Follows the two demo models on the first start: registered, fetched, loaded by the same actions as any other."""

from __future__ import annotations

import threading
from collections.abc import Callable

from django.db import DatabaseError, close_old_connections
from rich.console import Console

from inference import actions as inference_actions
from inference.models import Replica, ReplicaState
from mmserve.errors import MmserveError
from registry.actions.aliases import promote
from registry.actions.versions import import_version
from registry.demo import ensure_demo_models
from registry.models import ModelVersion, VersionState

ACTOR = "first start"
TICK_S = 0.5


class DemoFollower:
    """Asks for each step once, prints what changes, and ends when all have ended."""

    def __init__(
        self, console: Console, stopping: threading.Event, on_ready: Callable[[str, bool], None]
    ) -> None:
        """``on_ready`` is told a model's name and whether it chats: the first that serves, and the first that chats."""
        self.console = console
        self.stopping = stopping
        self.on_ready = on_ready
        self.said: dict[str, str] = {}
        self.asked: set[str] = set()
        self.announced: bool | None = None  # whether the last one that was told of chats

    def run(self) -> None:
        """Until every demo model serves or has said why not."""
        try:
            names = [version.pk for version in ensure_demo_models(actor=ACTOR)]
        except MmserveError as error:
            self.console.print(f"demo models: {error.message}")
            return
        waiting = set(names)
        while waiting and not self.stopping.wait(TICK_S):
            try:
                close_old_connections()
                # In the order of registration: the model that chats comes first.
                for version in (
                    ModelVersion.objects.select_related("model").filter(pk__in=waiting).order_by("pk")
                ):
                    if self._step(version):
                        waiting.discard(version.pk)
            except DatabaseError as error:
                self.console.print(f"demo models: {error}")

    def _step(self, version: ModelVersion) -> bool:
        """Take the next step of one version; True when it is at its end."""
        name = version.model.name
        try:
            if version.state == VersionState.REGISTERED:
                self._once(f"{name} import", lambda: import_version(version, actor=ACTOR))
            elif version.state == VersionState.FETCHING:
                self._say(name, _progress(version))
            elif version.state == VersionState.FAILED:
                self._say(name, f"failed: {version.state_reason}")
                return True
            elif version.state == VersionState.READY:
                return self._load(version)
        except MmserveError as error:
            self._say(name, error.message)
            return True
        return version.state == VersionState.ARCHIVED

    def _load(self, version: ModelVersion) -> bool:
        name = version.model.name
        if not version.model.aliases.exists():
            promote(version, actor=ACTOR)
        replica = Replica.objects.filter(deployment__version=version).first()
        if replica is not None and replica.state == ReplicaState.READY:
            self._say(name, f"ready, loaded in {replica.load_seconds:.1f} s")
            chats = bool(version.facts.get("chat_template"))
            if self.announced is None or (chats and not self.announced):
                self.announced = chats
                self.on_ready(name, chats)
            return True
        if replica is not None and replica.state == ReplicaState.FAILED and replica.superseded is False:
            self._say(name, f"failed to load: {replica.reason}")
            return False
        self._once(f"{name} load", lambda: inference_actions.load(version, actor=ACTOR))
        self._say(name, f"engine {replica.state}" if replica else "waiting for its engine")
        return False

    def _once(self, what: str, action: Callable[[], object]) -> None:
        if what not in self.asked:
            self.asked.add(what)
            action()

    def _say(self, name: str, text: str) -> None:
        if self.said.get(name) != text:
            self.said[name] = text
            self.console.print(f"{name}: {text}")


def _progress(version: ModelVersion) -> str:
    progress = version.progress
    stage = progress.get("stage", "fetching")
    total, done = progress.get("total_bytes"), progress.get("done_bytes")
    if total and done is not None:
        # In tenths, so that a terminal is not flooded.
        return f"{stage} {10 * (10 * done // total)}%"
    return stage
