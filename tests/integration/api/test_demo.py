"""What the first start follows, and which models it tells of."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from inference.models import Deployment, Device, Node, Replica, ReplicaState
from mmserve import demo
from registry import actions
from registry.models import Model, ModelVersion

CHATS, COMPLETES = "chats", "completes-3"


@pytest.fixture
def versions(source: str, db: None) -> dict[str, ModelVersion]:
    """Two models with files and a deployment each, in the order of registration."""
    found = {}
    node = Node.objects.create(name="n")
    Device.objects.create(node=node, name="cpu:0", kind="cpu", total_bytes=2**30, budget_bytes=2**30)
    for name in (CHATS, COMPLETES):
        model: Model = actions.register_model(name, actor="tests")
        version = actions.register_version(model, "1", source, actor="tests")
        actions.versions.transition(version, "fetching")
        version.facts = {"chat_template": name == CHATS}
        actions.versions.finish_import(version, actor="tests")
        actions.promote(version, actor="tests")
        Deployment.objects.create(version=version, name=f"{name}@1", replicas=1)
        found[name] = version
    return found


def serve(version: ModelVersion) -> None:
    Replica.objects.create(
        deployment=version.deployment,
        device=Device.objects.get(),
        state=ReplicaState.READY,
        reserved_bytes=0,
        load_seconds=2,
    )


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ((CHATS, COMPLETES), [(CHATS, True)]),
        ((COMPLETES, CHATS), [(COMPLETES, False), (CHATS, True)]),
    ],
)
def test_the_first_that_serves_is_told_of_and_the_first_that_chats(
    versions: dict[str, ModelVersion],
    order: tuple[str, str],
    told: list[tuple[str, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "ensure_demo_models", lambda actor: list(versions.values()))
    monkeypatch.setattr(demo.inference_actions, "load", lambda *args, **options: None)
    monkeypatch.setattr(demo, "close_old_connections", lambda: None)
    printed = io.StringIO()
    left = list(order)

    class Ticks(threading.Event):
        """One more model serves at each tick."""

        def wait(self, timeout: float | None = None) -> bool:
            if left:
                serve(versions[left.pop(0)])
            return False

    heard: list[tuple[str, bool]] = []
    console = Console(file=printed, force_terminal=True, highlight=False)
    demo.DemoFollower(console, Ticks(), on_ready=lambda *said: heard.append(said)).run()

    assert heard == told
    assert f"{COMPLETES}: ready, loaded in 2.0 s\n" in printed.getvalue()
