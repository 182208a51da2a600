"""Every operation of /v1/schema, with bodies made from it and against it: never a 5xx, always the envelope."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.e2e.platform import Platform


@pytest.fixture(scope="session")
def empty_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform without models: what is broken here harms no other test."""
    started = Platform(tmp_path_factory.mktemp("empty") / "data", demo=False)
    try:
        yield started
    finally:
        started.stop()


def error_envelope(_context: Any, response: Any, _case: Any) -> None:
    """A refusal is OpenAI's envelope, whoever refuses."""
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}, response.text


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
def test_every_operation_keeps_its_word(empty_platform: Platform, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{empty_platform.url}/v1/schema?format=json")
    headers = {"Authorization": f"Bearer {empty_platform.key}"}
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        # The platform's only key must live on: the next operations need it.
        if operation.method.upper() == "DELETE" and "keys" in operation.path:
            continue
        if mode is GenerationMode.NEGATIVE and not (
            operation.body or operation.query or operation.path_parameters
        ):
            continue

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps_its_word(case: Any) -> None:
            checks = [not_a_server_error, error_envelope]
            case.call_and_validate(headers=headers, checks=checks, timeout=20)

        keeps_its_word()
        tried += 1
    assert tried > 20
