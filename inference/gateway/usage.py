"""What one answered request cost: one record in the Redis stream ``mmserve:usage``, rolled up elsewhere."""

from __future__ import annotations

from routing.core.records import USAGE_STREAM, UsageRecord

__all__ = ["USAGE_STREAM", "UsageRecord"]
