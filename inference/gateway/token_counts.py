"""Prompts counted by the models' own tokenizers, where those are at hand and a bound does not settle whether one fits.

A tokenizer is loaded in the background once somebody has asked for it; until then, and wherever counting would
take long, the bound serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from inference.gateway.plan import TEMPLATE_TOKENS, TEMPLATE_TOKENS_A_MESSAGE, Plan
from inference.gateway.tasks import cancel_all

log = logging.getLogger(__name__)

THREADS = 2
# Beyond these, the bound serves.
MOST_COUNTING = 16
MOST_TOKENIZERS_A_REQUEST = 4
MOST_CHARACTERS = 2**20
COUNT_S = 0.25
# How long it is believed where a version's tokenizer lies, or that none is here.
LOOKED_UP_S = 60.0
MOST_LOOKED_UP = 10_000


class TokenizerFile(NamedTuple):
    """Where a tokenizer lies; one that several versions have is one by its digest."""

    path: Path
    size_bytes: int
    sha256: str


TokenizerSource = Callable[[str], Awaitable[TokenizerFile | None]]


async def no_tokenizers(served_id: str) -> TokenizerFile | None:
    """None is at hand."""
    return None


class TokenCounts:
    """Of one gateway process, owned by its event loop; ``most_bytes`` bounds the files of the tokenizers in memory."""

    def __init__(self, source: TokenizerSource, most_bytes: int) -> None:
        self._source = source
        self._most_bytes = most_bytes
        self._places: dict[str, tuple[TokenizerFile | None, float]] = {}
        # By digest, the one used last at the end, with its file's bytes; None is one that cannot be read.
        self._loaded: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._counting = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="token-counts")

    async def of(self, plan: Plan, served_ids: Iterable[str]) -> dict[str, int]:
        """Tokens of the longest prompt at each version whose tokenizer is loaded; of a chat never fewer than it has."""
        texts = _texts(plan)
        if not self._most_bytes or sum(map(len, texts)) > MOST_CHARACTERS:
            return {}
        wanted: dict[str, tuple[Any, list[str]]] = {}
        for served_id in served_ids:
            digest, tokenizer = self._at_hand(served_id, time.monotonic())
            if tokenizer is not None and (digest in wanted or len(wanted) < MOST_TOKENIZERS_A_REQUEST):
                wanted.setdefault(digest, (tokenizer, []))[1].append(served_id)
        found: dict[str, int] = {}
        for tokenizer, versions in wanted.values():
            tokens = await self._count(tokenizer, plan, texts)
            if tokens is not None:
                found.update(dict.fromkeys(versions, tokens))
        return found

    async def close(self) -> None:
        """End what is under way."""
        await cancel_all(list(self._loading.values()))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _at_hand(self, served_id: str, now: float) -> tuple[str, Any]:
        file, looked_at = self._places.get(served_id, (None, float("-inf")))
        if now - looked_at > LOOKED_UP_S:
            self._load(served_id)
        if file is None or file.sha256 not in self._loaded:
            return "", None
        self._loaded.move_to_end(file.sha256)
        return file.sha256, self._loaded[file.sha256][0]

    def _load(self, served_id: str) -> None:
        if served_id not in self._loading and len(self._loading) < MOST_COUNTING:
            task = self._loading[served_id] = asyncio.create_task(self._bring(served_id))
            task.add_done_callback(lambda _: self._loading.pop(served_id, None))

    async def _bring(self, served_id: str) -> None:
        try:
            file = await self._source(served_id)
        # The source is handed in: whatever it raises means that nobody knows now.
        except Exception as error:  # noqa: BLE001
            log.warning("the tokenizer of %s cannot be looked up: %s", served_id, error)
            file = None
        if len(self._places) >= MOST_LOOKED_UP:
            self._places.clear()
        self._places[served_id] = (file, time.monotonic())
        if file is None or file.sha256 in self._loaded or file.size_bytes > self._most_bytes:
            return
        tokenizer = await asyncio.get_running_loop().run_in_executor(self._threads, _read, file.path)
        self._loaded[file.sha256] = (tokenizer, file.size_bytes)
        while sum(size for _, size in self._loaded.values()) > self._most_bytes:
            self._loaded.popitem(last=False)

    async def _count(self, tokenizer: Any, plan: Plan, texts: list[str]) -> int | None:
        if self._counting >= MOST_COUNTING:
            return None
        self._counting += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, _tokens, tokenizer, plan, texts)
        work.add_done_callback(self._counted)
        try:
            return await asyncio.wait_for(asyncio.shield(work), COUNT_S)
        except TimeoutError:
            return None

    def _counted(self, work: asyncio.Future[int | None]) -> None:
        self._counting -= 1
        if not work.cancelled() and work.exception() is not None:
            log.warning("a prompt could not be counted: %s", work.exception())


def _texts(plan: Plan) -> list[str]:
    if plan.messages is not None:
        return [str(message["content"] or "") for message in plan.messages]
    return [one for one in plan.prompts or () if isinstance(one, str)]


def _tokens(tokenizer: Any, plan: Plan, texts: list[str]) -> int | None:
    special = plan.messages is None and plan.add_special_tokens
    try:
        counts = [len(tokenizer.encode(text, add_special_tokens=special)) for text in texts]
    # What panics in Rust is no Exception.
    except BaseException as error:  # noqa: BLE001
        log.warning("a prompt could not be counted: %s", error)
        return None
    if plan.messages is not None:
        return sum(counts) + TEMPLATE_TOKENS_A_MESSAGE * len(texts) + TEMPLATE_TOKENS
    return max([*counts, *(len(one) for one in plan.prompts or () if isinstance(one, list))], default=0)


def _read(path: Path) -> Any:
    # Only here: a gateway that counts nothing needs it not.
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        # Some files say that long texts are cut: those would be counted short.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    # What panics in Rust is no Exception.
    except BaseException as error:  # noqa: BLE001
        log.warning("the tokenizer %s cannot be used: %s", path, error)
        return None
    return tokenizer
