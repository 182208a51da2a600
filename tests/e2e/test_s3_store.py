"""A platform whose store is a bucket: import, upload, fetch into the node's cache, a real engine, an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.demo import DEMO_MODELS
from tests.e2e.platform import Platform, wait_until
from tests.faulty import Proxy
from tests.integration.registry.s3_server import BUCKET, bucket_client, s3, s3_server

__all__ = ["s3", "s3_server"]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture
def platform(tmp_path: Path, s3: Proxy) -> Iterator[Platform]:
    found = Platform(
        tmp_path / "s3store",
        demo=False,
        MMSERVE_STORAGE_URL=f"s3://{BUCKET}/store",
        MMSERVE_S3_ENDPOINT=s3.url,
        MMSERVE_CACHE_DIR=str(tmp_path / "cache"),
    )
    yield found
    found.stop()


def test_a_model_in_a_bucket_answers_from_a_real_engine(
    platform: Platform, s3: Proxy, s3_server: tuple[str, int]
) -> None:
    demo = DEMO_MODELS[0]
    http = platform.http

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = http.post(path, json=body)
        assert answer.status_code < 300, answer.text
        return dict(answer.json())

    model = post("/v1/registry/models", {"name": "acme/small", "licence": demo.licence})
    version = post(
        "/v1/registry/versions",
        {
            "model": model["id"],
            "version": "1",
            "source_uri": demo.source_uri,
            "engine_options": {"max_streams": 4},
        },
    )
    path = f"/v1/registry/versions/{version['id']}"
    post(f"{path}/import", {})
    wait_until(lambda: http.get(path).json()["state"] in ("ready", "failed"), 180, "the import ends")
    assert http.get(path).json()["state"] == "ready", http.get(path).json()["state_reason"]
    stored = bucket_client(s3_server).list_objects_v2(Bucket=BUCKET, Prefix="store/acme--small")["Contents"]
    assert len(stored) == len(http.get(path).json()["files"])

    post(f"/v1/registry/models/{model['id']}/promote", {"version": "1"})
    post("/v1/models/acme/small/load", {})
    platform.wait_ready("acme/small")
    answer = post(
        "/v1/completions", {"model": "acme/small", "prompt": "The capital of France is", "max_tokens": 8}
    )
    assert answer["choices"][0]["text"]

    # What serves stays in the cache; what does not may go and comes back.
    refused = http.delete("/v1/models/acme/small")
    assert refused.status_code == 409
    drained = http.delete("/v1/models/acme/small?drain=true")
    assert drained.status_code == 202
    wait_until(lambda: http.get("/v1/models/acme/small").status_code == 404, 60, "it is drained and deleted")
    client = bucket_client(s3_server)
    wait_until(
        lambda: "Contents" not in client.list_objects_v2(Bucket=BUCKET, Prefix="store/acme--small"),
        20,
        "its objects are deleted",
    )
