"""The node's processes with real vLLM: template, forked engines, and what remains when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from rq import Worker

from inference.engine import rqkeys
from inference.engine.release import release_dead_worker
from inference.protocol import DONE, EngineOptions, ReplicaSpec
from tests.integration.engine.gateway import TestGateway, poll

pytestmark = pytest.mark.vllm

QUESTION = [{"role": "user", "content": "What is the capital of France? zanzibar"}]
LONG = {"max_tokens": 150, "ignore_eos": True}


class Node:
    """A node process, and what it has told."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.integration.engine.node_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.log = log
        self.news: list[dict[str, Any]] = []

    def command(self, **words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    async def hears(self, key: str, value: Any) -> dict[str, Any]:
        """Wait for news of this kind; they are taken in order."""

        def look() -> dict[str, Any] | None:
            assert self.process.stdout is not None
            while line := self.process.stdout.readline():
                self.news.append(json.loads(line))
            for at, news in enumerate(self.news):
                if news.get(key) == value:
                    del self.news[: at + 1]
                    return news
            return None

        return await poll(look, f"{key} {value}; {self.log.read_text()[-2000:]}", wait_s=120)

    def template(self) -> psutil.Process:
        [found] = [
            child
            for child in psutil.Process(self.process.pid).children()
            if "inference.node.template" in " ".join(child.cmdline())
        ]
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path / "node.log")
    yield found
    found.kill()


@pytest.fixture
def start(
    node: Node, gateway: TestGateway, redis_url: str, smollm2: Path, tmp_path: Path
) -> Callable[[str], Awaitable[int]]:
    """Start a replica on the node; its pid once it is ready."""

    async def begin(replica: str) -> int:
        options = EngineOptions(context_length=512, max_streams=8, kv_cache_bytes=128 * 2**20)
        spec = ReplicaSpec(
            replica=replica,
            deployment="stub",
            served_id="smollm2@1",
            model_path=str(smollm2),
            redis_url=redis_url,
            options=options,
            log_path=str(tmp_path / f"{replica}.log"),
        )
        node.command(start=msgspec.to_builtins(spec))
        pid: int = (await node.hears("started", replica))["pid"]
        await poll(
            lambda: (beat := gateway.beat(replica)) and beat.state == "ready", "a ready engine", wait_s=120
        )
        return pid

    return begin


async def test_an_engine_is_forked_handed_to_the_node_and_drained(
    node: Node, start: Callable[[str], Awaitable[int]], gateway: TestGateway, tmp_path: Path
) -> None:
    await node.hears("template_ready", True)
    pid = await start("r1")
    engine = psutil.Process(pid)
    assert engine.ppid() == node.process.pid
    assert os.getsid(pid) == pid
    assert "smollm2@1" in engine.cmdline()[0]

    job_id = gateway.submit(messages=QUESTION, sampling={"temperature": 0.0, "max_tokens": 40})
    assert (await gateway.ended(job_id))[-1][2] == DONE
    node.command(stop="r1")
    ended = await node.hears("exit", "r1")
    assert (ended["reason"], ended["code"]) == ("drained", 0)
    log = (tmp_path / "r1.log").read_text()
    assert "serves stub.high" in log
    assert "zanzibar" not in log
    assert gateway.text(job_id) not in log


async def test_a_killed_engine_is_reported_and_its_jobs_are_released(
    node: Node, start: Callable[[str], Awaitable[int]], gateway: TestGateway
) -> None:
    pid = await start("r1")
    job_id = gateway.submit(messages=QUESTION, sampling=LONG)
    await gateway.spoken(job_id)
    os.kill(pid, signal.SIGKILL)
    ended = await node.hears("exit", "r1")
    assert ended["code"] == -signal.SIGKILL
    assert "SIGKILL" in ended["reason"]
    assert "serves stub.high" in ended["log_tail"]
    assert release_dead_worker(gateway.connection, rqkeys.worker_name("r1", pid), ended["reason"]) == [job_id]
    assert Worker.all(connection=gateway.connection) == []


async def test_engines_outlive_their_template_which_is_started_anew(
    node: Node, start: Callable[[str], Awaitable[int]], gateway: TestGateway
) -> None:
    first = await start("r1")
    job_id = gateway.submit(messages=QUESTION, sampling=LONG)
    await gateway.spoken(job_id)
    node.template().kill()
    assert (await gateway.ended(job_id))[-1][2] == DONE
    second = await start("r2")
    assert psutil.Process(first).ppid() == psutil.Process(second).ppid() == node.process.pid


async def test_a_killed_node_leaves_nothing_behind(
    node: Node, start: Callable[[str], Awaitable[int]], gateway: TestGateway
) -> None:
    await start("r1")
    gateway.submit(messages=QUESTION, sampling=LONG)
    family = psutil.Process(node.process.pid).children(recursive=True)
    assert len(family) >= 2
    node.process.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


async def test_a_model_that_cannot_be_loaded_says_why(
    node: Node, gateway: TestGateway, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    spec = ReplicaSpec(
        replica="r1",
        deployment="stub",
        served_id="nothing@1",
        model_path=str(tmp_path / "empty"),
        redis_url=redis_url,
        options=EngineOptions(),
        log_path=str(tmp_path / "r1.log"),
    )
    node.command(start=msgspec.to_builtins(spec))
    ended = await node.hears("exit", "r1")
    assert ended["code"] == 70
    assert "empty" in ended["log_tail"]
