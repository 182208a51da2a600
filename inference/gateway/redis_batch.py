"""Scripts of many requests in one round trip: what is asked during one batch goes with the next."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from importlib.resources import files
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, ConnectionError, NoScriptError, ReadOnlyError, RedisError

from mmserve.errors import Unavailable

log = logging.getLogger(__name__)

MAX_BATCH = 256
MAX_WAITING = 20_000
AGAIN_S = 0.25
# A server that cannot take the command now may take it later.
PASSING = (BusyLoadingError, ConnectionError, ReadOnlyError)


class Script:
    """One Lua script of this package, known to Redis by its digest."""

    def __init__(self, name: str) -> None:
        self.source = files("inference.gateway").joinpath("lua", f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class _Asked(NamedTuple):
    """One command: ``done`` hears its answer; ``again`` means until Redis has taken it."""

    script: Script
    command: tuple[Any, ...]
    done: asyncio.Future[Any] | None
    again: bool = False


class RedisBatch:
    """Runs scripts through one pipeline at a time; its owner starts it with ``run()`` as a task.

    Every call ends within ``timeout_s`` or so: a Redis that is gone makes it fail with ``Unavailable``.
    """

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._waiting: deque[_Asked] = deque()
        self._wake = asyncio.Event()
        self.dropped = 0

    async def call(self, script: Script, keys: list[Any], args: list[Any]) -> Any:
        """The script's answer; ``Unavailable`` when Redis cannot be reached."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("Too many requests wait for Redis.", retry_after_s=1.0)
        self._add(_Asked(script, _command(script, keys, args), done))
        return await done

    def post(self, script: Script, keys: list[Any], args: list[Any], *, again: bool = False) -> None:
        """Run the script without waiting for it. Of too many that wait, the oldest are dropped.

        ``again``: send it until Redis has answered, in its order; the script must bear to be sent twice.
        """
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._drop("too many wait")
        self._add(_Asked(script, _command(script, keys, args), None, again))

    def _add(self, asked: _Asked) -> None:
        self._waiting.append(asked)
        self._wake.set()

    async def run(self) -> None:
        """Send batch after batch until cancelled."""
        batch: list[_Asked] = []
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                    unheard = await self._send(
                        [one for one in batch if one.done is None or not one.done.done()]
                    )
                    batch = []
                    if unheard:
                        self._waiting.extendleft(reversed(unheard))
                        await asyncio.sleep(AGAIN_S)
        finally:
            # What was cut off in the middle is sent once more at the end.
            self._waiting.extendleft(reversed([one for one in batch if one.again]))
            for one in (*batch, *self._waiting):
                if one.done is not None and not one.done.done():
                    one.done.set_exception(Unavailable("The gateway is stopping."))

    async def drain(self) -> None:
        """Send what still waits, once; for the end of the process, after ``run()`` was cancelled."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            for _ in await self._send(batch):
                self._drop("the gateway stops")

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # at 1, 2, 4, 8, …
            log.error("%d scripts were not run in Redis: %s", self.dropped, why)

    async def _send(self, batch: list[_Asked]) -> list[_Asked]:
        """Run a batch; returns what has to be sent again."""
        if not batch:
            return []
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._execute(batch)
        except (RedisError, OSError, TimeoutError) as error:
            failure = Unavailable(f"Redis cannot be reached ({type(error).__name__}).", retry_after_s=1.0)
            answers = [failure] * len(batch)
        unheard = []
        for one, answer in zip(batch, answers, strict=True):
            failed = isinstance(answer, Exception)
            if one.done is None:
                if failed and one.again and isinstance(answer, (Unavailable, *PASSING)):
                    unheard.append(one)
                elif failed:
                    self._drop(str(answer))
            elif not one.done.done():
                if failed:
                    one.done.set_exception(answer)
                else:
                    one.done.set_result(answer)
        return unheard

    async def _execute(self, batch: list[_Asked]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for one in batch:
            pipe.execute_command(*one.command)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:  # a Redis that was restarted knows no scripts
            pipe = self._redis.pipeline(transaction=False)
            for script in {batch[index].script for index in unknown}:
                pipe.execute_command("SCRIPT", "LOAD", script.source)
            for index in unknown:
                pipe.execute_command(*batch[index].command)
            again = await pipe.execute(raise_on_error=False)
            for index, answer in zip(unknown, again[-len(unknown) :], strict=True):
                answers[index] = answer
        return answers


def _command(script: Script, keys: list[Any], args: list[Any]) -> tuple[Any, ...]:
    return ("EVALSHA", script.sha, len(keys), *keys, *args)
