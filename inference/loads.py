"""The replicas of a deployment together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from inference.protocol import ReplicaBeat
from routing.core.live import DeploymentLoad

READY, LOADING = "ready", "loading"


def load_of(beats: Iterable[ReplicaBeat]) -> DeploymentLoad:
    """What the beats of one deployment's replicas add up to."""
    beats = list(beats)
    ready = [beat for beat in beats if beat.state == READY]
    return DeploymentLoad(
        ready=len(ready),
        loading=sum(beat.state == LOADING for beat in beats),
        running=sum(beat.running for beat in ready),
        waiting=sum(beat.waiting for beat in ready),
        max_streams=sum(beat.max_streams for beat in ready),
        jobs_per_s=sum(beat.jobs_per_s for beat in ready),
        tokens_per_s=sum(beat.tokens_per_s for beat in ready),
        ttft_s=sum(beat.ttft_s for beat in ready) / max(1, len(ready)),
        kv_usage=sum(beat.kv_usage for beat in ready) / max(1, len(ready)),
        context_length=min((beat.context_length for beat in ready), default=0),
    )


def loads_of(beats: Iterable[ReplicaBeat]) -> Mapping[str, DeploymentLoad]:
    """By deployment."""
    found: dict[str, list[ReplicaBeat]] = defaultdict(list)
    for beat in beats:
        found[beat.deployment].append(beat)
    return {deployment: load_of(group) for deployment, group in found.items()}
