"""Scripts of many requests in one round trip: what is asked during one batch goes with the next."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from importlib.resources import files
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from mmserve.errors import Unavailable

log = logging.getLogger(__name__)

MAX_BATCH = 256
MAX_WAITING = 20_000


class Script:
    """One Lua script of this package, known to Redis by its digest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = files("inference.gateway").joinpath("lua", f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class _Asked(NamedTuple):
    """One command: ``done`` hears its answer."""

    script: Script
    command: tuple[Any, ...]
    done: asyncio.Future[Any] | None


class RedisBatch:
    """Runs scripts through one pipeline at a time; its owner starts it with ``run()`` as a task.

    Every call ends within ``timeout_s`` or so: a Redis that is gone makes it fail with ``Unavailable``.
    """

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._waiting: deque[_Asked] = deque()
        self._wake = asyncio.Event()

    async def call(self, script: Script, keys: list[Any], args: list[Any]) -> Any:
        """The script's answer; ``Unavailable`` when Redis cannot be reached."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("Too many requests wait for Redis.", retry_after_s=1.0)
        self._add(_Asked(script, _command(script, keys, args), done))
        return await done

    def post(self, script: Script, keys: list[Any], args: list[Any]) -> None:
        """Run the script without waiting for it, unless too much waits already."""
        if len(self._waiting) < MAX_WAITING:
            self._add(_Asked(script, _command(script, keys, args), None))

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
                    await self._send([one for one in batch if one.done is None or not one.done.done()])
                    batch = []
        finally:
            for one in (*batch, *self._waiting):
                if one.done is not None and not one.done.done():
                    one.done.set_exception(Unavailable("The gateway is stopping."))

    async def _send(self, batch: list[_Asked]) -> None:
        """Run a batch; everybody hears the answer, or the failure."""
        if not batch:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._execute(batch)
        except (RedisError, OSError, TimeoutError) as error:
            failure = Unavailable(f"Redis cannot be reached ({type(error).__name__}).", retry_after_s=1.0)
            answers = [failure] * len(batch)
        for one, answer in zip(batch, answers, strict=True):
            if one.done is None:
                if isinstance(answer, Exception):
                    log.warning("%s was not run in Redis: %s", one.script.name, answer)
            elif not one.done.done():
                if isinstance(answer, Exception):
                    one.done.set_exception(answer)
                else:
                    one.done.set_result(answer)

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
