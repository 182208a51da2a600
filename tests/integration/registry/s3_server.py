"""A real S3 protocol server (moto) on loopback, and a proxy before it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from registry.s3 import client_for
from tests.faulty import Proxy, faulty_proxy

BUCKET = "models"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield host, port
    server.stop()


@pytest.fixture
def s3(s3_server: tuple[str, int], settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """An empty bucket behind a proxy that does as it is told."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTEST"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrSECRETSECRET"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    client_for.cache_clear()
    with faulty_proxy(*s3_server) as proxy:
        settings.S3_ENDPOINTS = [proxy.url]
        direct = bucket_client(s3_server)
        direct.create_bucket(Bucket=BUCKET)
        yield proxy
        for entry in direct.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            direct.delete_object(Bucket=BUCKET, Key=entry["Key"])
        direct.delete_bucket(Bucket=BUCKET)
    client_for.cache_clear()


def bucket_client(server: tuple[str, int]) -> Any:
    """A client past the proxy."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://{server[0]}:{server[1]}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


def upload(server: tuple[str, int], folder: Path, prefix: str) -> None:
    """A folder's files as objects."""
    client = bucket_client(server)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            client.put_object(
                Bucket=BUCKET, Key=f"{prefix}/{file.relative_to(folder)}", Body=file.read_bytes()
            )


def no_secret_in(text: str) -> bool:
    return os.environ["AWS_SECRET_ACCESS_KEY"] not in text and os.environ["AWS_ACCESS_KEY_ID"] not in text
