"""A draft model is set, checked, shown and guarded, by REST, in the admin and by commands."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
import redis
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from inference import actions as serving
from inference.models import Deployment, Device, Node
from inference.protocol import CheckRequest, checks_key
from mmserve.errors import Conflict, InvalidRequest
from registry import actions
from registry.models import Event, Model, ModelVersion
from tests.integration.api.conftest import make_ready

FACTS = {
    "layers": 2,
    "kv_heads": 2,
    "head_size": 64,
    "hidden_size": 128,
    "vocabulary": 1000,
    "weight_bytes": 10**9,
    "parameters": 5 * 10**8,
    "context_length": 1000,
}
DRAFTS = {**FACTS, "weight_bytes": 10**8, "parameters": 5 * 10**7, "layers": 1}
NAME = "acme/small@1"
GUESSING = {"speculation": "draft_model", "draft": NAME}


@pytest.fixture
def version(ready: ModelVersion, redis_url: str) -> ModelVersion:
    ModelVersion.objects.filter(pk=ready.pk).update(facts=FACTS)
    ready.refresh_from_db()
    return ready


@pytest.fixture
def draft(version: ModelVersion, source: str) -> ModelVersion:
    row = make_ready(actions.register_model("acme/small", actor="tests"), "1", source)
    ModelVersion.objects.filter(pk=row.pk).update(facts=DRAFTS)
    row.refresh_from_db()
    return row


@pytest.fixture
def deployment(version: ModelVersion) -> Deployment:
    return Deployment.objects.create(name="acme-echo-1", version=version)


@pytest.fixture
def guessed(deployment: Deployment, draft: ModelVersion) -> Deployment:
    """The deployment with its draft."""
    return serving.configure(deployment, {"speculation": "draft_model", "draft": draft}, actor="tests")


def path_of(deployment: Deployment) -> str:
    return f"/v1/registry/deployments/{deployment.pk}"


def refused(client: APIClient, deployment: Deployment, body: dict[str, Any]) -> tuple[int, str, str]:
    answer = client.patch(path_of(deployment), body, format="json")
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


def test_a_draft_is_written_and_shown_by_its_id_and_told_in_the_event(
    manager: APIClient, deployment: Deployment, draft: ModelVersion
) -> None:
    actions.promote(draft, actor="tests")
    answer = manager.patch(path_of(deployment), {**GUESSING, "draft": "acme/small"}, format="json")
    assert (answer.status_code, answer.json()["draft"]) == (200, NAME)
    assert Event.objects.get(kind="deployment.configured").data["to"]["draft"] == NAME
    assert manager.get(path_of(deployment)).json()["draft"] == NAME

    off = manager.patch(path_of(deployment), {"speculation": "", "draft": None}, format="json")
    assert (off.status_code, off.json()["draft"]) == (200, None)
    assert Event.objects.filter(kind="deployment.configured").first().data["from"]["draft"] == NAME


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"speculation": "draft_model"}, "needs a version that guesses"),
        ({"draft": NAME}, "speculation is off"),
        ({"speculation": "ngram", "draft": NAME}, "speculation is ngram"),
        ({**GUESSING, "draft": "acme/smal"}, "Did you mean acme/small"),
        ({**GUESSING, "draft": "acme/small@2"}, "no version or alias '2'"),
        ({**GUESSING, "draft": 7}, "not a string"),
        ({**GUESSING, "draft": ["acme/small"]}, "not a string"),
        ({**GUESSING, "draft": ""}, "blank"),
    ],
)
def test_a_wrong_draft_is_refused_at_its_field(
    manager: APIClient, deployment: Deployment, draft: ModelVersion, body: dict[str, Any], words: str
) -> None:
    status, param, message = refused(manager, deployment, body)
    assert (status, param) == (400, "draft")
    assert words in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "archived"}, "acme/small@1 is archived; only a ready version"),
        ({"deletion_asked_by": "bob"}, "is being deleted, as bob asked"),
        ({"facts": {**DRAFTS, "vocabulary": 1001}}, "a vocabulary of 1,001 tokens, acme/echo@1 one of 1,000"),
        (
            {"facts": {**DRAFTS, "layers": 2, "sliding_window": 512, "window_layers": 1}},
            "both models must be of one kind, and here are a window of 512 tokens, full attention",
        ),
        ({"facts": {**DRAFTS, "kv_lora_rank": 512}}, "here are full attention, latent attention"),
    ],
)
def test_a_draft_that_could_not_guess_is_refused(
    manager: APIClient, deployment: Deployment, draft: ModelVersion, change: dict[str, Any], words: str
) -> None:
    ModelVersion.objects.filter(pk=draft.pk).update(**change)
    status, param, message = refused(manager, deployment, GUESSING)
    assert (status, param) == (400, "draft")
    assert words in message


def test_a_drafts_code_is_run_only_where_both_models_are_trusted(
    manager: APIClient, deployment: Deployment, draft: ModelVersion
) -> None:
    Model.objects.filter(name="acme/echo").update(trust_remote_code=True)
    status, param, message = refused(manager, deployment, GUESSING)
    assert (status, param) == (400, "draft")
    assert "acme/small must not" in message
    Model.objects.update(trust_remote_code=True)
    assert manager.patch(path_of(deployment), GUESSING, format="json").status_code == 200


def test_one_stream_must_fit_the_cache_with_its_drafts_part(
    manager: APIClient, deployment: Deployment, draft: ModelVersion
) -> None:
    # Blocks of 128 tokens, 8 of them and the one that is kept: 512 bytes a token and layer.
    alone, both = 9 * 128 * 2 * 512, 9 * 128 * 3 * 512
    for size in (alone, both - 1):
        assert manager.patch(path_of(deployment), {"kv_cache_bytes": size}, format="json").status_code == 200
    status, param, message = refused(manager, deployment, GUESSING)
    assert (status, param) == (400, "kv_cache_bytes")
    assert f"which takes {both} with its draft" in message


def test_the_engine_is_asked_about_both_versions(
    manager: APIClient, deployment: Deployment, draft: ModelVersion, redis_url: str
) -> None:
    Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
    client = redis.Redis.from_url(redis_url)
    seen: list[CheckRequest] = []

    def answers() -> None:
        asked = client.blpop([checks_key("here")], timeout=20)
        assert asked is not None
        seen.append(msgspec.json.decode(asked[1], type=CheckRequest))  # type: ignore[index]
        client.rpush(seen[0].reply_to, "the draft model is of no use")

    node = threading.Thread(target=answers)
    node.start()
    status, param, message = refused(manager, deployment, GUESSING)
    node.join(20)
    assert (seen[0].version, seen[0].draft) == (deployment.version_id, draft.pk)
    assert (status, param) == (400, "draft")
    assert "of no use" in message


def test_what_guesses_for_a_deployment_is_neither_archived_nor_deleted(
    manager: APIClient, guessed: Deployment, draft: ModelVersion
) -> None:
    words = f"{NAME} is the draft of deployment acme-echo-1"
    row = f"/v1/registry/versions/{draft.pk}"
    for answer in (
        manager.post(f"{row}/archive", {}, format="json"),
        manager.delete(f"/v1/models/{NAME}"),
        manager.delete(f"/v1/models/{NAME}?drain=true"),
        manager.delete("/v1/models/acme/small"),
        manager.delete("/v1/models/acme/small?drain=true"),
    ):
        assert answer.status_code == 409, answer.content
        assert words in answer.json()["error"]["message"]
    draft.refresh_from_db()
    assert (draft.state, draft.deletion_asked_by) == ("ready", "")

    serving.configure(guessed, {"speculation": "", "draft": None}, actor="tests")
    assert manager.delete("/v1/models/acme/small").status_code == 200


def test_a_model_goes_as_a_whole_though_one_of_its_versions_guesses_for_another(
    manager: APIClient, deployment: Deployment, source: str
) -> None:
    row = make_ready(deployment.version.model, "0", source)
    ModelVersion.objects.filter(pk=row.pk).update(facts=DRAFTS)
    body = {"speculation": "draft_model", "draft": "acme/echo@0"}
    assert manager.patch(path_of(deployment), body, format="json").status_code == 200
    assert manager.delete("/v1/models/acme/echo@0").status_code == 409
    assert manager.delete("/v1/models/acme/echo?drain=true").status_code == 200
    assert not ModelVersion.objects.exists()


def test_a_version_that_guesses_for_itself_goes_like_any_other(
    manager: APIClient, deployment: Deployment
) -> None:
    body = {"speculation": "draft_model", "draft": "acme/echo@1"}
    assert manager.patch(path_of(deployment), body, format="json").status_code == 200
    assert manager.delete("/v1/models/acme/echo@1").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_of_an_archival_and_a_wish_for_its_draft_at_once_one_is_refused(
    deployment: Deployment, draft: ModelVersion
) -> None:
    start, ended = threading.Barrier(2), []

    def attempt(verb: Any) -> None:
        try:
            start.wait(20)
            verb()
            ended.append("done")
        except (Conflict, InvalidRequest):
            ended.append("refused")
        finally:
            connections.close_all()

    wish = {"speculation": "draft_model", "draft": ModelVersion.objects.get(pk=draft.pk)}
    threads = [
        threading.Thread(target=attempt, args=(verb,))
        for verb in (
            lambda: actions.archive_version(ModelVersion.objects.get(pk=draft.pk), actor="ada"),
            lambda: serving.configure(deployment, wish, actor="bob"),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == ["done", "refused"]


def test_a_plan_with_a_draft_counts_its_weights_and_its_part_of_the_cache(
    manager: APIClient, version: ModelVersion, draft: ModelVersion
) -> None:
    node = Node.objects.create(name="here", last_seen=timezone.now(), template_ready=True)
    Device.objects.create(node=node, name="cpu:0", kind="cpu", total_bytes=2**36, budget_bytes=2**35)
    alone = manager.get("/v1/models/acme/echo@1/plan?streams=3").json()
    both = manager.get(f"/v1/models/acme/echo@1/plan?streams=3&draft={NAME}").json()

    assert (alone["draft"], both["draft"]) == (None, NAME)
    # In 16 bits, with the CPU kernels' copy of the vocabulary.
    assert both["parts"]["draft_weights"] == 10**8 + 2 * 1000 * 128
    assert (alone["kv_bytes_a_token"], both["kv_bytes_a_token"]) == (1024, 1536)
    assert both["parts"]["kv_cache"] == 3 * 1000 * 1536
    # And the logits of four guesses a stream.
    guesses = both["parts"]["activations"] - alone["parts"]["activations"]
    assert guesses == 4 * 3 * 40 * 1000
    drafts = both["parts"]["draft_weights"] + 3 * 1000 * 512
    assert both["total_bytes"] - alone["total_bytes"] == drafts + guesses

    unknown = manager.get("/v1/models/acme/echo@1/plan?draft=nobody")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "draft")
    ModelVersion.objects.filter(pk=draft.pk).update(facts={**DRAFTS, "vocabulary": 5})
    other = manager.get(f"/v1/models/acme/echo@1/plan?draft={NAME}")
    assert (other.status_code, other.json()["error"]["param"]) == (400, "draft")


def test_a_versions_own_options_name_a_draft_that_its_deployment_gets(
    manager: APIClient, version: ModelVersion, draft: ModelVersion, client: Client, ada: User
) -> None:
    copy = actions.duplicate_version(version, "2", actor="tests", engine_options=GUESSING)
    assert serving.ensure_deployment(copy, actor="tests").draft == draft

    for options, words in (
        ({"speculation": "draft_model"}, "needs a version that guesses"),
        ({**GUESSING, "draft": 7}, "like name@version"),
    ):
        with pytest.raises(InvalidRequest, match=words) as wrong:
            actions.duplicate_version(version, "3", actor="tests", engine_options=options)
        assert wrong.value.param == "engine_options"

    # It may be registered later: then it is looked for when there is a deployment.
    nowhere = {**GUESSING, "draft": "acme/nowhere"}
    later = actions.duplicate_version(version, "4", actor="tests", engine_options=nowhere)
    client.force_login(ada)
    page = client.get(f"/admin/registry/modelversion/{later.pk}/change/")
    assert page.status_code == 200
    with pytest.raises(InvalidRequest, match="There is no model 'acme/nowhere'") as missing:
        serving.ensure_deployment(later, actor="tests")
    assert missing.value.param == "draft"


def test_the_admin_sets_a_draft_and_puts_a_refusal_beside_it(
    deployment: Deployment, draft: ModelVersion, client: Client, ada: User
) -> None:
    client.force_login(ada)
    path = f"/admin/inference/deployment/{deployment.pk}/change/"
    form = client.get(path).context["adminform"].form
    values = {name: form[name].value() for name in form.fields}
    body = {
        **{name: value for name, value in values.items() if value not in (None, False)},
        **{
            f"{name}-{count}_FORMS": "0"
            for name in ("schedules", "replica_set")
            for count in ("TOTAL", "INITIAL")
        },
        "warmup_prompts": "[]",
    }
    wrong = client.post(path, {**body, "draft": str(draft.pk)})
    assert "speculation is off" in str(wrong.context["adminform"].form.errors["draft"])
    done = client.post(path, {**body, "draft": str(draft.pk), "speculation": "draft_model"})
    assert done.status_code == 302, done.context["adminform"].form.errors
    assert Deployment.objects.get().draft == draft
    assert "draft&#x27;s weights" in client.get(path).content.decode()
