"""Under /v1 nothing is ever HTML: Django's own refusals come in the envelope too."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError
from rest_framework.test import APIClient

import inference.api
from registry import revision


def envelope(response: Any) -> dict[str, Any]:
    assert response["Content-Type"].startswith("application/json")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/nothing", "/v1/models/", "/v1/registry/", "/v1/registry/models/x"]
)
def test_what_does_not_exist_is_404(manager: APIClient, path: str) -> None:
    response = manager.get(path)

    assert response.status_code == 404
    assert envelope(response)["code"] in ("not_found", "model_not_found")


def test_a_wrong_method_is_405(manager: APIClient) -> None:
    response = manager.put("/v1/models")

    assert response.status_code == 405
    assert envelope(response)["code"] == "method_not_allowed"


def test_a_wrong_host_is_400_and_names_the_setting(manager: APIClient) -> None:
    response = manager.get("/v1/models", HTTP_HOST="evil.example")

    assert response.status_code == 400
    assert "MMSERVE_ALLOWED_HOSTS" in envelope(response)["message"]


def test_a_bug_is_500_with_the_requests_id_and_without_its_details(
    manager: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*args: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(inference.api, "listing", bug)
    response = manager.get("/v1/models", headers={"x-request-id": "req-7"})

    assert response.status_code == 500
    error = envelope(response)
    assert error["code"] == "internal_error"
    assert "req-7" in error["message"]
    assert "secret detail" not in response.content.decode()


def test_a_database_that_is_away_is_503(manager: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any) -> None:
        raise OperationalError("connection refused at 10.0.0.1")

    monkeypatch.setattr(inference.api, "listing", away)
    monkeypatch.setattr(revision, "current", away)
    response = manager.get("/v1/models")

    assert response.status_code == 503
    assert envelope(response)["message"] == "The database does not answer."
    assert response["x-mmserve-revision"] == "unknown"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ("{", "application/json", 400),
        ("[1]", "application/json", 400),
        ('"text"', "application/json", 400),
        ("null", "application/json", 400),
        ("\xff\xfe", "application/json", 400),
        ('{"name": NaN}', "application/json", 400),
        ("[" * 100_000, "application/json", 400),
        ("name=x", "application/x-www-form-urlencoded", 415),
        ("<x/>", "text/xml", 415),
    ],
)
def test_a_body_that_is_no_json_object_is_4xx(
    manager: APIClient, body: str, content_type: str, status: int
) -> None:
    response = manager.generic("POST", "/v1/registry/models", body.encode("latin-1"), content_type)

    assert response.status_code == status
    envelope(response)


def test_a_huge_body_is_refused(manager: APIClient) -> None:
    response = manager.post(
        "/v1/registry/models", {"name": "x", "description": "y" * 3_000_000}, format="json"
    )

    assert response.status_code in (400, 413)
    envelope(response)


def test_every_answer_has_the_headers_of_the_contract(manager: APIClient) -> None:
    response = manager.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert response["x-request-id"] == "mine-1"
    assert response["x-mmserve-revision"] == str(revision.current())

    for insane in ("", "a b", "x" * 200, "é"):
        found = manager.get("/v1/models", headers={"x-request-id": insane})["x-request-id"]
        assert found != insane
        assert len(found) == 32


@pytest.mark.parametrize("path", ["//v1/completions", "///v1", "/v1//models"])
def test_a_slash_too_many_under_v1_is_answered_in_json(client: Any, db: None, path: str) -> None:
    response = client.post(f"http://testserver{path}")

    assert response.status_code == 404
    assert envelope(response)["message"] == f"There is nothing at {path}."


def test_outside_of_v1_pages_stay_pages(client: Any, db: None) -> None:
    response = client.get("/nothing")

    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")
    assert client.get("/").headers["Location"] == "/admin/"
    assert client.get("/metrics").status_code == 200
    assert client.get("/admin/django-rq/").status_code == 302
