"""An engine that goes on compiled, with real vLLM: a node has its form made, engines take it over or stay eager."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inference.engine.forms import CODE, MANIFEST, Shelf, wishes
from inference.protocol import COMPILED, COMPILING, DONE, EAGER, EngineOptions, ReplicaSpec
from tests.integration.engine.conftest import CHECKOUT
from tests.integration.engine.gateway import TestGateway, poll
from tests.integration.engine.test_node import Node

# Compiling takes a minute of two processors.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

KEPT = CHECKOUT / ".cache" / "forms"
BEGINNINGS = (
    "A cat",
    "The sea",
    "My car",
    "Rome is old and",
    "Bread",
    "Music",
    "Water",
    "Trains and planes are",
)
GREEDY = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
SCHEMA = json.dumps(
    {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}
)


@pytest.fixture
def forms(tmp_path: Path) -> Path:
    folder = tmp_path / "forms"
    folder.mkdir()
    return folder


@pytest.fixture
def node(forms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("FORMS", str(forms))
    found = Node(tmp_path / "node.log")
    yield found
    found.kill()


@pytest.fixture
async def engines(
    node: Node, forms: Path, smollm2: Path, vllm_redis: str, tmp_path: Path
) -> AsyncIterator[Engines]:
    gateway = TestGateway(vllm_redis, "forms")
    await gateway.open()
    yield Engines(node, gateway, forms, smollm2, vllm_redis, tmp_path)
    await gateway.close()


class Engines:
    """One engine after the other, on a node, with a folder of forms."""

    def __init__(
        self, node: Node, gateway: TestGateway, forms: Path, model: Path, redis_url: str, logs: Path
    ) -> None:
        self.node = node
        self.gateway = gateway
        self.forms = forms
        self.model = model
        self.redis_url = redis_url
        self.logs = logs

    async def start(self, replica: str, **options: Any) -> str:
        """Its form in its first beat as a ready one."""
        spec = ReplicaSpec(
            replica=replica,
            deployment="forms",
            served_id="smollm2@float32",
            model_path=str(self.model),
            redis_url=self.redis_url,
            options=EngineOptions(
                dtype="float32", context_length=512, max_streams=8, kv_cache_bytes=128 * 2**20, **options
            ),
            log_path=str(self.logs / f"{replica}.log"),
            forms=str(self.forms),
        )
        self.node.command(start=msgspec.to_builtins(spec))
        await self.node.hears("started", replica)
        beat = await poll(
            lambda: (found := self.gateway.beat(replica)) and found.state == "ready" and found,
            f"{replica} is ready; {self.log(replica)}",
            wait_s=120,
        )
        return str(beat.form)

    async def goes_on(self, replica: str, form: str, wait_s: float) -> None:
        def look() -> bool:
            beat = self.gateway.beat(replica)
            return beat is not None and beat.form == form

        await poll(look, f"{replica} goes on {form}; {self.log(replica)}", wait_s=wait_s)

    async def stop(self, replica: str) -> None:
        self.node.command(stop=replica)
        assert (await self.node.hears("exit", replica))["code"] == 0

    def log(self, replica: str) -> str:
        path = self.logs / f"{replica}.log"
        return path.read_text()[-3000:] if path.exists() else ""

    async def texts(self) -> list[str]:
        """Greedy answers, all at once."""
        ids = [self.gateway.submit(prompts=[f"{one} is"], sampling=GREEDY) for one in BEGINNINGS]
        for job_id in ids:
            assert (await self.gateway.ended(job_id))[-1][2] == DONE
        return [self.gateway.text(job_id) for job_id in ids]

    async def answer(self, **request: Any) -> str:
        job_id = self.gateway.submit(**request)
        assert (await self.gateway.ended(job_id))[-1][2] == DONE
        return self.gateway.text(job_id)

    async def form_is_made(self) -> Path:
        """By the node's builder; or, on a machine that has made it before, from the checkout's cache."""
        [job] = wishes(self.forms)
        shelf, kept = Shelf(self.forms, job.key), KEPT / job.key
        if (kept / MANIFEST).exists():
            copy = self.forms / "copy"
            shutil.copytree(kept, copy)
            shelf.keep(copy)
        await poll(lambda: shelf.has_form() or shelf.failure(), "the form is made or failed", wait_s=600)
        assert not shelf.failure()
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(shelf.form, kept, dirs_exist_ok=True)
        return shelf.form


async def test_an_engine_starts_eager_goes_on_compiled_and_is_compiled_from_then_on(
    engines: Engines,
) -> None:
    assert await engines.start("first") == COMPILING
    eager = await engines.texts()
    form = await engines.form_is_made()
    await engines.goes_on("first", COMPILED, wait_s=30)
    assert await engines.texts() == eager

    # What does not go the straight way works as before.
    person = json.loads(
        await engines.answer(prompts=["A person: "], sampling={"max_tokens": 40, "json_schema": SCHEMA})
    )
    assert person["age"] <= 99
    job_id = engines.gateway.submit(prompts=["A cat is"], sampling={**GREEDY, "logprobs": 2})
    await engines.gateway.ended(job_id)
    assert engines.gateway.text(job_id) == eager[0]
    assert all(len(delta[6]) == len(delta[5]) for delta in engines.gateway.deltas(job_id))
    await engines.stop("first")

    assert await engines.start("second") == COMPILED
    assert await engines.texts() == eager
    await engines.stop("second")

    # The same form is for an engine with a draft, which itself stays eager.
    draft = {"speculation": "draft_model", "speculative_tokens": 3, "draft_path": str(engines.model)}
    assert await engines.start("guessing", **draft) == COMPILED
    assert await engines.texts() == eager
    await engines.stop("guessing")

    # A form whose bytes have changed is refused before anything of it runs.
    code = bytearray((form / CODE).read_bytes())
    code[len(code) // 2] ^= 0xFF
    (form / CODE).write_bytes(code)
    assert await engines.start("third") == EAGER
    assert "is not as it was made" in engines.log("third")
    assert await engines.texts() == eager
    assert not form.exists()
    await engines.stop("third")
