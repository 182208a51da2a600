"""What an operator sets of the gateway; read from Django's settings in mmserve/asgi.py only."""

from __future__ import annotations

from dataclasses import dataclass

from routing.core.records import USAGE_MOST


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Bounds and waits of one gateway process."""

    redis_url: str
    max_body_bytes: int = 4 * 2**20
    max_socket_message_bytes: int = 2**20
    max_socket_requests: int = 32
    socket_auth_s: float = 10.0
    keep_alive_s: float = 15.0
    deadline_grace_s: float = 2.0
    drain_s: float = 30.0  # what a stop lets requests in flight finish in
    max_attempts: int = 3
    result_ttl_s: int = 60
    failure_ttl_s: int = 600
    usage_maxlen: int = USAGE_MOST
    decisions_per_s: float = 20.0  # decisions kept by each process; of those that failed, as many again
    decisions_kept: int = 10_000
    decisions_kept_s: int = 86_400
    redis_timeout_s: float = 5.0
    # Between the replicas of one deployment; see routing.core.affinity and mmserve/settings.py.
    affinity: bool = True
    affinity_factor: float = 1.25
    affinity_slack: int = 4
    affinity_wait_s: float = 0.25
    affinity_blocks: int = 65_536
    # Files of the tokenizers that are kept loaded; 0: prompts are not counted.
    tokenizer_bytes: int = 64 * 2**20
