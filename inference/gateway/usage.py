"""What one answered request cost: one record in the Redis stream ``mmserve:usage``, rolled up elsewhere."""

from __future__ import annotations

import msgspec

USAGE_STREAM = "mmserve:usage"


class UsageRecord(msgspec.Struct, kw_only=True):
    """Times are in seconds; ``outcome`` is "completed", "cancelled" or an error's code."""

    request_id: str
    key: str
    model: str  # as the client named it
    served_id: str
    deployment: str
    endpoint: str
    outcome: str
    status: int
    at: float
    stream: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    attempts: int = 1
    queued_s: float = 0.0
    ttft_s: float = 0.0
    e2e_s: float = 0.0
