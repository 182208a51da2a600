"""Context lengths by the models' own tokenizers, through the front door."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inference.gateway.token_counts import TokenizerFile
from routing.core.route import CandidateEntry, Policy, RouteEntry
from routing.core.table import DeploymentEntry, Limits, ModelEntry, RoutingTable, VersionEntry
from tests.integration.gateway.conftest import Gateway, Opener
from tests.integration.gateway.fake_engine import FakeEngine, words
from tests.integration.gateway.test_fallback import has_table
from tests.integration.gateway.waiting import until
from tests.unit.gateway.test_token_counts import write_tokenizer

# Far more bytes than ``small`` has room for, and few tokens.
FEW = " ".join(["incomprehensibility"] * 20)
MANY = " ".join(["incomprehensibility"] * 80)


def sized(*, big: int = 1) -> RoutingTable:
    """A route over a small context and then a big one, which ``big`` replicas are wanted of."""
    contexts = {"small": 64, "big": 4096}
    return RoutingTable.build(
        revision=2,
        models=[ModelEntry(id=name, default=f"{name}@1") for name in contexts],
        versions=[VersionEntry(served_id=f"{name}@1", model=name) for name in contexts],
        aliases={},
        deployments=[
            DeploymentEntry(
                id=name,
                served_id=f"{name}@1",
                limits=Limits(context_length=length),
                wanted_replicas=big if name == "big" else 1,
            )
            for name, length in contexts.items()
        ],
        routes=[
            RouteEntry(
                id="either",
                candidates=tuple(CandidateEntry(target=name) for name in contexts),
                policy=Policy.PRIORITY,
            )
        ],
    )


@pytest.fixture
def opened(open_gateway: Opener, tmp_path: Path) -> Any:
    @contextlib.asynccontextmanager
    async def opened(table: RoutingTable) -> AsyncIterator[Gateway]:
        file = write_tokenizer(tmp_path / "tokenizer.json")

        async def source(served_id: str) -> TokenizerFile | None:
            return TokenizerFile(file, file.stat().st_size, "words") if served_id == "small@1" else None

        async with open_gateway() as gateway:
            gateway.runtime._counts._source = source
            await has_table(gateway, table)
            layer, url = gateway.layer, gateway.redis_url
            async with (
                FakeEngine(url, layer, deployment="small", script=words("s")),
                FakeEngine(url, layer, deployment="big", script=words("b")),
            ):
                loads = gateway.runtime.live.loads
                await until(lambda: all(name in loads and loads[name].ready for name in ("small", "big")))
                yield gateway

    return opened


async def explained(gateway: Gateway, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"model": "either", "prompt": prompt, "max_tokens": 8, **more}
    return (await gateway.client.post("/v1/routing/explain", body)).json()


async def counted(gateway: Gateway) -> None:
    """Until the small one's tokenizer is loaded."""
    await explained(gateway, FEW)
    await until(lambda: gateway.runtime._counts._loaded)


async def test_a_prompt_of_few_tokens_goes_where_its_bytes_would_not_have_fitted(opened: Any) -> None:
    body = {"model": "either", "prompt": FEW, "max_tokens": 8}
    async with opened(sized()) as gateway:
        first = await gateway.client.post("/v1/completions", body)
        await counted(gateway)
        then = await gateway.client.post("/v1/completions", body)
    assert first.headers["x-mmserve-model"] == "big@1"
    assert then.headers["x-mmserve-model"] == "small@1"


async def test_the_reason_of_one_that_is_too_small_has_the_count(opened: Any) -> None:
    async with opened(sized()) as gateway:
        await counted(gateway)
        found = await explained(gateway, MANY)
        short = await explained(gateway, "two words")
    assert found["chosen"] == "big"
    [small] = [one for one in found["candidates"] if one["id"] == "small"]
    assert small["reasons"] == ["needs 89 tokens of context, has 64"]
    assert short["chosen"] == "small"


async def test_what_surely_fits_is_not_counted(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(sized()) as gateway:
        await counted(gateway)
        monkeypatch.setattr("inference.gateway.token_counts._tokens", lambda *given: pytest.fail("counted"))
        assert (await explained(gateway, "two words"))["chosen"] == "small"
