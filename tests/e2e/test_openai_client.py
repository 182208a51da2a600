"""The official client, unchanged, against the platform of `make run`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.platform import ROOT, Platform, sse

CHAT = "smollm2-135m-instruct"
BASE = "gemma-3-270m"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{platform.url}/v1", api_key=platform.key, max_retries=0, timeout=120
    ) as made:
        yield made


def test_make_run_prints_what_a_newcomer_needs(platform: Platform) -> None:
    printed = platform.printed()
    for wanted in (platform.url, platform.credentials["password"], platform.key, "curl -N"):
        assert wanted in printed
    mode = (platform.data_dir / "credentials.json").stat().st_mode & 0o777
    assert mode == 0o600


def test_what_is_printed_to_paste_answers_as_the_readme_says(platform: Platform) -> None:
    printed = platform.printed()
    [pasted] = re.findall(r"^curl .*?'$(?=\n\S|\n?\Z)", printed, re.MULTILINE | re.DOTALL)
    done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=60, check=True)
    chunks = list(sse(done.stdout.splitlines()))
    assert chunks.pop() == "[DONE]"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text.startswith("The capital of France is Paris")
    assert pasted.split("-d ")[1] in (ROOT / "README.md").read_text()


def test_both_demo_models_are_listed_and_ready(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {CHAT, BASE} <= models.keys()
    assert client.models.retrieve(CHAT).model_extra["status"] == "ready"


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=CAPITAL, temperature=0, max_tokens=30)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_is_the_same_text_with_usage_only_when_asked(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=CHAT, messages=CAPITAL, temperature=0, max_tokens=30)
    plain = list(
        client.chat.completions.create(
            model=CHAT, messages=CAPITAL, temperature=0, max_tokens=30, stream=True
        )
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in plain) == whole.choices[0].message.content
    )
    assert plain[0].choices[0].delta.role == "assistant"
    assert plain[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in plain)
    assert len({chunk.id for chunk in plain}) == 1
    asked = list(
        client.chat.completions.create(
            model=CHAT,
            messages=CAPITAL,
            temperature=0,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert asked[-1].choices == []
    assert asked[-1].usage == whole.usage


def test_completions_take_lists_tokens_and_n(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=BASE, prompt=["The sea is", "The sky is"], n=2, max_tokens=5, temperature=0.8, seed=7
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 20
    tokens = client.completions.create(model=BASE, prompt=[2, 651, 5122], max_tokens=3)
    assert tokens.usage is not None
    assert tokens.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("prompt", "text", "tokens"),
    [
        ("Monday, Tuesday, Wednesday,", " Thursday, Friday, Saturday, Sunday,", 7),
        ("One, two, three, four,", " five, six, seven, eight,", 9),
    ],
)
def test_a_base_models_prompt_begins_with_its_bos_without_which_it_repeats_itself(
    client: openai.OpenAI, prompt: str, text: str, tokens: int
) -> None:
    def answer(model: str, **extra: object) -> tuple[str, int]:
        found = client.completions.create(
            model=model, prompt=prompt, max_tokens=8, temperature=0, extra_body=extra
        )
        assert found.usage is not None
        return found.choices[0].text, found.usage.prompt_tokens

    assert answer(BASE) == (text, tokens)
    bare_text, bare_tokens = answer(BASE, add_special_tokens=False)
    assert bare_text != text
    assert bare_tokens == tokens - 1
    # SmolLM2's GGUF says that it wants none.
    assert answer(CHAT)[1] == answer(CHAT, add_special_tokens=False)[1]


def test_logprobs_of_both_endpoints(client: openai.OpenAI) -> None:
    text = client.completions.create(model=CHAT, prompt="One two", max_tokens=3, logprobs=2, temperature=0)
    logprobs = text.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == 3
    assert all(value <= 0 for value in logprobs.token_logprobs or [])
    chat = client.chat.completions.create(
        model=CHAT, messages=CAPITAL, max_tokens=3, logprobs=True, top_logprobs=2, temperature=0
    )
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert [len(entry.top_logprobs) for entry in content] == [2, 2, 2]


def test_a_json_schema_is_followed(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
        max_tokens=80,
        temperature=0,
    )
    parsed = json.loads(answer.choices[0].message.content or "")
    assert set(parsed) == {"city", "people"}
    assert isinstance(parsed["people"], int)


def test_stop_cuts_before_the_word(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT, prompt="1, 2, 3, 4, 5, 6,", max_tokens=40, temperature=0, stop=["9"]
    )
    assert "9" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_text_twice(client: openai.OpenAI) -> None:
    texts = {
        client.completions.create(model=CHAT, prompt="A poem:", max_tokens=12, temperature=1, seed=3)
        .choices[0]
        .text
        for _ in range(2)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("change", "kind", "param", "code"),
    [
        ({"model": "smollm2-135m-instrukt"}, openai.NotFoundError, "model", "model_not_found"),
        ({"max_tokens": 100_000}, openai.BadRequestError, None, "context_length_exceeded"),
        ({"temperature": 9}, openai.BadRequestError, "temperature", None),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature", None),
        ({"messages": []}, openai.BadRequestError, "messages", None),
    ],
)
def test_bad_input_names_the_field(
    client: openai.OpenAI, change: dict[str, object], kind: type[openai.APIStatusError], param: str, code: str
) -> None:
    body: dict[str, object] = {"model": CHAT, "messages": CAPITAL, "max_tokens": 5, **change}
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**body)  # type: ignore[call-overload]
    assert set(caught.value.body or {}) == {"message", "type", "param", "code"}  # type: ignore[call-overload]
    if param:
        assert caught.value.param == param
    if code:
        assert caught.value.code == code


def test_an_unknown_model_is_answered_with_near_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="smollm2-135m", prompt="x")
    assert CHAT in caught.value.message


def test_a_base_model_without_a_chat_template_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=BASE, messages=CAPITAL)
    assert 400 <= caught.value.status_code < 500
    assert "chat template" in caught.value.message


def test_a_missing_and_a_wrong_key_are_401(platform: Platform) -> None:
    for key in ("", "mms-wrong"):
        headers = {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""}
        answer = platform.http.post("/v1/completions", json={"model": CHAT, "prompt": "x"}, headers=headers)
        assert answer.status_code == 401
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_revoked_key_is_refused_within_a_second(platform: Platform) -> None:
    from tests.e2e.platform import wait_until

    made = platform.http.post("/v1/registry/keys", json={"name": "short lived"}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    body = {"model": CHAT, "prompt": "x", "max_tokens": 1}
    assert platform.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert platform.http.delete(f"/v1/registry/keys/{made['id']}").status_code == 204
    wait_until(
        lambda: platform.http.post("/v1/completions", json=body, headers=headers).status_code == 401, 5, "401"
    )


def test_what_does_not_fit_is_refused_with_figures_and_harms_nobody(platform: Platform) -> None:
    def deployment(model: str) -> tuple[str, dict[str, Any]]:
        query = {"version__model__name": model}
        [found] = platform.http.get("/v1/registry/deployments", params=query).json()["results"]
        return f"/v1/registry/deployments/{found['id']}", found

    def change(path: str, **options: Any) -> None:
        answer = platform.http.patch(path, json=options)
        assert answer.status_code == 200, answer.text

    path, before = deployment(BASE)
    other, _ = deployment(CHAT)
    impossible = platform.http.patch(path, json={"kv_cache_bytes": 2**40})
    assert (impossible.status_code, impossible.json()["error"]["param"]) == (400, "kv_cache_bytes")
    found = re.search(r"needs ([\d.]+) GiB, ([\d.]+) GiB free", impossible.json()["error"]["message"])
    assert found is not None
    needs, free = map(float, found.groups())
    # One of it alone would have a place, but not beside one that never sleeps.
    change(path, kv_cache_bytes=int((free - (needs - 2**10) - 0.5) * 2**30))
    change(other, pinned=True)
    refused = platform.http.post(f"/v1/models/{BASE}/load", json={"replicas": 3})
    change(other, pinned=False)
    change(path, kv_cache_bytes=before["kv_cache_bytes"])
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "insufficient_memory"
    assert "GiB free" in refused.json()["error"]["message"]
    body = {"model": BASE, "prompt": "x", "max_tokens": 1}
    assert platform.http.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"quantization": "mxfp8"}, "quantization", "cpu:0 can do int8_per_channel_weight_only"),
        ({"tensor_parallel": 2}, "tensor_parallel", "cpu:0 can do at most 1"),
        ({"max_batched_tokens": 3}, "max_batched_tokens", "max_streams"),
        ({"speculation": "telepathy"}, "speculation", "telepathy"),
    ],
)
def test_options_that_the_engine_would_refuse_are_refused_when_they_are_saved(
    platform: Platform, change: dict[str, object], param: str, words: str
) -> None:
    [deployment] = platform.http.get(
        "/v1/registry/deployments", params={"version__model__name": CHAT}
    ).json()["results"]
    path = f"/v1/registry/deployments/{deployment['id']}"
    refused = platform.http.patch(path, json=change)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert words in refused.json()["error"]["message"]
    assert platform.http.get(path).json() == deployment
