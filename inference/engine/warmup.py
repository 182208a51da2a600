"""A freshly loaded engine answers a few prompts for nobody: what is slow the first time is slow for no client."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from inference.engine.base import Engine
from inference.protocol import GenerateRequest, Sampling
from mmserve.errors import MmserveError

MAX_TOKENS = 16
LONGEST_S = 60.0

logger = logging.getLogger(__name__)


def warm_up(engine: Engine, prompts: Sequence[str]) -> int:
    """Answer each prompt with a few tokens; how many were. One that the engine refuses is left out."""
    begun, answered = time.monotonic(), 0
    for number, prompt in enumerate(prompts):
        job = f"warm-up-{number}"
        request = GenerateRequest(
            request_id=job,
            reply_to="",
            deadline=time.time() + LONGEST_S,
            sampling=Sampling(max_tokens=MAX_TOKENS, temperature=0.0),
            prompts=[prompt],
        )
        try:
            engine.add(job, request, engine.prepare(request))
        except MmserveError as error:
            # Never the prompt itself.
            logger.warning("warm-up prompt %d is refused: %s", number, type(error).__name__)
            continue
        while engine.is_busy() and time.monotonic() - begun < LONGEST_S:
            engine.step()
        if engine.is_busy():
            engine.abort(job)
            logger.warning("warming up took longer than %.0f s: the rest is left out", LONGEST_S)
            break
        answered += 1
    logger.info("warmed up with %d of %d prompts in %.2f s", answered, len(prompts), time.monotonic() - begun)
    return answered
