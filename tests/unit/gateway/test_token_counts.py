"""Counting with tokenizers that were really written: loaded once asked for, bounded, and never in the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from inference.gateway import token_counts
from inference.gateway.plan import TEMPLATE_TOKENS, TEMPLATE_TOKENS_A_MESSAGE, Plan
from inference.gateway.token_counts import TokenCounts, TokenizerFile
from inference.protocol import Sampling

BYTES = 2**20


def write_tokenizer(file: Path, *, cut: int | None = None) -> Path:
    """A token a word, and one that begins a text; ``cut``: it says that longer texts are cut."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "?": 1, "word": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    if cut is not None:
        tokenizer.enable_truncation(cut)
    tokenizer.save(str(file))
    return file


def text_plan(*prompts: Any, **more: Any) -> Plan:
    return Plan(
        endpoint="completions", model="m", sampling=Sampling(), stream=False, include_usage=False,
        want_logprobs=False, prompts=list(prompts), **more,
    )  # fmt: skip


class Source:
    """Where tokenizers lie, by served id; counts how often it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, TokenizerFile] = {}
        self.asked: list[str] = []

    async def __call__(self, served_id: str) -> TokenizerFile | None:
        self.asked.append(served_id)
        return self.files.get(served_id)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    found = Source()
    file = write_tokenizer(tmp_path / "tokenizer.json", cut=4)
    for name in ("a@1", "a@2"):
        found.files[name] = TokenizerFile(file, file.stat().st_size, "same")
    return found


@pytest.fixture
async def counts(source: Source) -> AsyncIterator[TokenCounts]:
    made = TokenCounts(source, BYTES)
    yield made
    await made.close()


async def loaded(counts: TokenCounts, *served_ids: str) -> None:
    """Ask once, and wait for what that began."""
    await counts.of(text_plan("word"), served_ids)
    await asyncio.gather(*counts._loading.values())


async def test_the_first_one_goes_by_the_bound_and_the_next_is_counted_whole(counts, source):
    long = text_plan("word " * 50)
    assert await counts.of(long, ["a@1"]) == {}
    await loaded(counts, "a@1")
    assert await counts.of(long, ["a@1"]) == {"a@1": 51}
    assert source.asked == ["a@1"]


async def test_versions_with_the_same_tokenizer_are_counted_once(counts, source, monkeypatch):
    await loaded(counts, "a@1", "a@2")
    made: list[int] = []
    count = token_counts._tokens
    monkeypatch.setattr(token_counts, "_tokens", lambda *given: made.append(1) or count(*given))
    assert await counts.of(text_plan("word word"), ["a@1", "a@2", "b@1"]) == {"a@1": 3, "a@2": 3}
    assert len(made) == 1


async def test_the_longest_prompt_counts_and_tokens_are_tokens(counts):
    await loaded(counts, "a@1")
    assert await counts.of(text_plan("word", "word word word"), ["a@1"]) == {"a@1": 4}
    assert await counts.of(text_plan("word", [1] * 9), ["a@1"]) == {"a@1": 9}
    bare = text_plan("word", add_special_tokens=False)
    assert await counts.of(bare, ["a@1"]) == {"a@1": 1}


async def test_a_chat_is_never_counted_short_of_what_its_template_adds(counts):
    await loaded(counts, "a@1")
    plan = text_plan()
    plan.prompts, plan.messages = (
        None,
        [{"role": "user", "content": "word word"}, {"role": "x", "content": None}],
    )
    assert await counts.of(plan, ["a@1"]) == {"a@1": 2 + 2 * TEMPLATE_TOKENS_A_MESSAGE + TEMPLATE_TOKENS}


async def test_a_file_that_is_no_tokenizer_and_a_source_that_fails_leave_it_to_the_bound(
    counts, source, tmp_path
):
    (tmp_path / "bad.json").write_text('{"model": {"type": "BPE"}}')
    source.files["bad@1"] = TokenizerFile(tmp_path / "bad.json", 10, "bad")
    await loaded(counts, "bad@1")
    assert await counts.of(text_plan("word"), ["bad@1"]) == {}

    async def away(served_id: str) -> TokenizerFile | None:
        raise OSError("the database is away")

    counts._source = away
    await loaded(counts, "other@1")
    assert await counts.of(text_plan("word"), ["other@1"]) == {}


async def test_tokenizers_in_memory_are_bounded_and_the_one_used_last_stays(source, tmp_path):
    file = source.files["a@1"]
    source.files["b@1"] = file._replace(sha256="b")
    source.files["huge@1"] = file._replace(sha256="huge", size_bytes=10 * file.size_bytes)
    counts = TokenCounts(source, file.size_bytes)
    try:
        await loaded(counts, "a@1")
        await loaded(counts, "b@1")
        await loaded(counts, "huge@1")
        assert await counts.of(text_plan("word"), ["a@1", "b@1", "huge@1"]) == {"b@1": 2}
    finally:
        await counts.close()


async def test_none_is_loaded_where_it_is_switched_off(source):
    counts = TokenCounts(source, 0)
    await loaded(counts, "a@1")
    assert source.asked == []
    await counts.close()


async def test_a_count_that_takes_long_is_not_waited_for_and_the_loop_goes_on(counts, monkeypatch):
    await loaded(counts, "a@1")
    go, begun = threading.Event(), threading.Event()

    def slow(*given: Any) -> int:
        begun.set()
        go.wait(30)
        return 1

    monkeypatch.setattr(token_counts, "_tokens", slow)
    try:
        counting = asyncio.create_task(counts.of(text_plan("word"), ["a@1"]))
        await asyncio.to_thread(begun.wait, 30)
        # The loop runs while a thread counts, and gives up on it without its having ended.
        assert await counting == {}
        assert not go.is_set()
    finally:
        go.set()


async def test_beyond_a_number_of_counts_at_once_the_bound_serves(counts, monkeypatch):
    await loaded(counts, "a@1")
    monkeypatch.setattr(token_counts, "MOST_COUNTING", 0)
    assert await counts.of(text_plan("word"), ["a@1"]) == {}


async def test_a_text_that_is_very_long_is_not_counted(counts, monkeypatch):
    await loaded(counts, "a@1")
    monkeypatch.setattr(token_counts, "MOST_CHARACTERS", 10)
    assert await counts.of(text_plan("word word word"), ["a@1"]) == {}
