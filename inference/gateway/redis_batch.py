"""Scripts of many requests in one round trip: what is asked during one batch goes with the next."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from mmserve.errors import Unavailable

MAX_BATCH = 256
MAX_WAITING = 20_000


class Script:
    """One Lua script of this package, known to Redis by its digest."""

    def __init__(self, name: str) -> None:
        self.source = files("inference.gateway").joinpath("lua", f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class RedisBatch:
    """Runs scripts through one pipeline at a time; its owner starts it with ``run()`` as a task.

    Every call ends within ``timeout_s`` or so: a Redis that is gone makes it fail with ``Unavailable``.
    """

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[Script, tuple[Any, ...], asyncio.Future[Any] | None]] = deque()
        self._wake = asyncio.Event()
        self.dropped = 0

    async def call(self, script: Script, keys: list[Any], args: list[Any]) -> Any:
        """The script's answer; ``Unavailable`` when Redis cannot be reached."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("Too many requests wait for Redis.", retry_after_s=1.0)
        self._add(script, keys, args, done)
        return await done

    def post(self, script: Script, keys: list[Any], args: list[Any]) -> None:
        """Run the script without waiting for it. Of too many that wait, the oldest are dropped."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._add(script, keys, args, None)

    def _add(
        self, script: Script, keys: list[Any], args: list[Any], done: asyncio.Future[Any] | None
    ) -> None:
        self._waiting.append((script, ("EVALSHA", script.sha, len(keys), *keys, *args), done))
        self._wake.set()

    async def run(self) -> None:
        """Send batch after batch until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                    await self._send([one for one in batch if one[2] is None or not one[2].done()])
        finally:
            for _, _, done in self._waiting:
                if done is not None and not done.done():
                    done.set_exception(Unavailable("The gateway is stopping."))

    async def drain(self) -> None:
        """Send what still waits, once; for the end of the process, after ``run()`` was cancelled."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            await self._send(batch)

    async def _send(self, batch: list[tuple[Script, tuple[Any, ...], asyncio.Future[Any] | None]]) -> None:
        if not batch:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._execute(batch)
        except (RedisError, OSError, TimeoutError) as error:
            failure = Unavailable(f"Redis cannot be reached ({type(error).__name__}).", retry_after_s=1.0)
            answers = [failure] * len(batch)
        for (_, _, done), answer in zip(batch, answers, strict=True):
            if done is None:
                self.dropped += isinstance(answer, Exception)
            elif not done.done():
                if isinstance(answer, Exception):
                    done.set_exception(answer)
                else:
                    done.set_result(answer)

    async def _execute(
        self, batch: list[tuple[Script, tuple[Any, ...], asyncio.Future[Any] | None]]
    ) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for _, command, _ in batch:
            pipe.execute_command(*command)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:  # a Redis that was restarted knows no scripts
            pipe = self._redis.pipeline(transaction=False)
            for script in {batch[index][0] for index in unknown}:
                pipe.execute_command("SCRIPT", "LOAD", script.source)
            for index in unknown:
                pipe.execute_command(*batch[index][1])
            again = await pipe.execute(raise_on_error=False)
            for index, answer in zip(unknown, again[-len(unknown) :], strict=True):
                answers[index] = answer
        return answers
