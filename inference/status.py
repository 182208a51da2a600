"""The status of versions as clients read it: wish, replicas and import job in one word and its reason."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import Q
from django.utils import timezone

from inference.beats import read_asked, read_beats
from inference.capacity.eta import FETCH, LOAD, WAIT, remaining_s, usual_s
from inference.capacity.ladder import ASLEEP as ASLEEP_RUNG
from inference.capacity.ladder import DISCARDED, KV_RELEASED, SERVING
from inference.models import ALIVE, Deployment, Replica, ReplicaState
from inference.protocol import COMPILED, COMPILING, EAGER, ReplicaBeat
from registry.models import ModelVersion, VersionState

UNLOADED, FETCHING, LOADING, READY, DRAINING, FAILED = (
    "unloaded",
    "fetching",
    "loading",
    "ready",
    "draining",
    "failed",
)
ASLEEP = "asleep"
STATUSES = (UNLOADED, FETCHING, LOADING, READY, ASLEEP, DRAINING, FAILED)
# A model with several versions and no default alias has the status of the one that is furthest.
FURTHEST = (READY, LOADING, DRAINING, ASLEEP, FETCHING, FAILED, UNLOADED)


RUNG_WORDS = {
    KV_RELEASED: "its KV cache is given back",
    ASLEEP_RUNG: "its weights are in host memory",
    DISCARDED: "its process is warm, its weights are read from files",
}

# The replicas that are on their way up.
COMING = (ReplicaState.PENDING, ReplicaState.LOADING)
# What the slowest replica of a deployment is.
SLOWEST = (EAGER, COMPILING, COMPILED)
# The replicas that say something of their deployment's status.
WANTED = Q(state__in=ALIVE) | Q(state=ReplicaState.FAILED, superseded=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One word, and what applies of why, at which stage, how far and for how many more seconds."""

    status: str
    reason: str | None = None
    stage: str | None = None
    eta_s: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    form: str | None = None  # of a ready one, where it may be compiled: protocol.EAGER, COMPILING, COMPILED


def statuses(versions: Iterable[ModelVersion]) -> dict[int, Status]:
    """The status of each version by its primary key; three queries however many they are."""
    rows = list(versions)
    return _statuses(rows, Q(version__in=rows))


def live_statuses() -> dict[int, Status]:
    """The statuses of the versions that are served, wished for or being fetched; all others are only files."""
    observed = Replica.objects.filter(WANTED).values("deployment")
    busy = Q(replicas__gt=0) | Q(pk__in=observed)
    served = Q(deployment__in=Deployment.objects.filter(busy))
    rows = ModelVersion.objects.filter(served | Q(state=VersionState.FETCHING))
    return _statuses(list(rows), busy)


def status_of_files(version: ModelVersion) -> Status:
    """The status of a version that nobody serves or wishes for."""
    return _of_files(version) or Status(status=UNLOADED)


def _statuses(rows: list[ModelVersion], which: Q) -> dict[int, Status]:
    deployments = {row.version_id: row for row in Deployment.objects.filter(which)}
    replicas: dict[int, list[Replica]] = defaultdict(list)
    for replica in Replica.objects.filter(WANTED, deployment__in=[row.pk for row in deployments.values()]):
        replicas[replica.deployment_id].append(replica)
    telling = (*COMING, ReplicaState.READY)
    beats = read_beats(str(row.id) for found in replicas.values() for row in found if row.state in telling)
    asked_at = read_asked() if any(row.asleep for row in deployments.values()) else {}
    return {
        row.pk: _of_files(row) or _of_deployment(deployments.get(row.pk), replicas, beats, asked_at)
        for row in rows
    }


def furthest(found: Iterable[Status]) -> Status:
    """The status of a model without a default alias."""
    return min(found, key=lambda status: FURTHEST.index(status.status), default=Status(status=UNLOADED))


def _of_files(version: ModelVersion) -> Status | None:
    """Set where the files decide alone."""
    match version.state:
        case VersionState.FETCHING:
            progress = version.progress
            return Status(
                status=FETCHING,
                stage=progress.get("stage"),
                eta_s=progress.get("eta_s"),
                done_bytes=progress.get("done_bytes"),
                total_bytes=progress.get("total_bytes"),
            )
        case VersionState.FAILED:
            return Status(status=FAILED, reason=version.state_reason)
        case VersionState.REGISTERED:
            return Status(status=UNLOADED, reason="Its files were not fetched yet.")
        case VersionState.ARCHIVED:
            return Status(status=UNLOADED, reason="It is archived.")
    return None


def _resting(deployment: Deployment, replica: Replica, asked_at: float | None) -> Status:
    if replica.rung == SERVING:
        return Status(status=DRAINING, stage=f"going to {replica.wanted_rung}")
    waits = deployment.wanted_at is not None or asked_at is not None
    return Status(
        status=LOADING if waits else ASLEEP,
        reason=None if waits else f"It rests ({RUNG_WORDS[replica.rung]}); a request wakes it.",
        stage="waiting for memory" if waits else None,
        eta_s=replica.wake_seconds.get(replica.rung),
    )


def _waking(replica: Replica) -> Status:
    return Status(
        status=LOADING, stage=f"waking ({replica.rung})", eta_s=replica.wake_seconds.get(replica.rung)
    )


def _of_deployment(
    deployment: Deployment | None,
    replicas: dict[int, list[Replica]],
    beats: dict[str, ReplicaBeat],
    asked_at: dict[str, float],
) -> Status:
    if deployment is None:
        return Status(status=UNLOADED)
    rows = replicas[deployment.pk]
    staying = [row for row in rows if row.state in ALIVE and not row.stop_requested]
    resting = [row for row in staying if row.wanted_rung != SERVING]
    staying = [row for row in staying if row.wanted_rung == SERVING]
    waking = [row for row in staying if row.rung != SERVING]
    ready = [row for row in staying if row.state == ReplicaState.READY and row.rung == SERVING]
    if ready:
        return Status(status=READY, form=_form(beats, ready))
    if waking:
        return _waking(waking[0])
    coming = next((row for row in staying if row.state != ReplicaState.DRAINING), None)
    if coming is not None:
        return _of_coming(deployment, coming, beats.get(str(coming.id)))
    if resting and deployment.replicas:
        return _resting(deployment, resting[0], asked_at.get(deployment.name))
    if any(row.state in ALIVE for row in rows):
        back_s = usual_s(deployment.loads) if deployment.replicas else None
        return Status(status=DRAINING, eta_s=_rounded(back_s))
    if deployment.failure:
        return Status(status=FAILED, reason=deployment.failure)
    if deployment.asleep:
        return _of_sleeping(deployment, asked_at.get(deployment.name))
    failed = next((row for row in rows if row.state == ReplicaState.FAILED), None)
    if failed is not None:
        return Status(
            status=FAILED, reason=failed.reason or "The engine ended without a reason; see its log."
        )
    if deployment.replicas:
        return Status(status=LOADING, stage="waiting for a node", eta_s=_rounded(deployment.usual_load_s))
    return Status(status=UNLOADED)


def _of_coming(deployment: Deployment, replica: Replica, beat: ReplicaBeat | None) -> Status:
    """One that has its place: its files are on their way, or its engine loads."""
    fetching = replica.state == ReplicaState.PENDING
    since = replica.created_at if fetching else replica.started_at or replica.created_at
    eta_s = remaining_s(
        deployment.loads,
        FETCH if fetching else LOAD,
        (timezone.now() - since).total_seconds(),
        fetch_left_s=beat.left_s if beat else None,
    )
    return Status(
        status=LOADING,
        stage=(beat.stage if beat else "") or str(replica.state),
        eta_s=_rounded(eta_s),
        done_bytes=beat.done_bytes if beat else None,
        total_bytes=beat.total_bytes if beat else None,
    )


def _of_sleeping(deployment: Deployment, asked_at: float | None) -> Status:
    """Its memory is others': one that is asked for waits until they have left."""
    if deployment.wanted_at is not None:
        asked_at = min(asked_at or time.time(), deployment.wanted_at.timestamp())
    if asked_at is None:
        return Status(
            status=ASLEEP,
            reason="Others have its memory; a request wakes it.",
            eta_s=_rounded(usual_s(deployment.loads)),
        )
    eta_s = remaining_s(deployment.loads, WAIT, max(0.0, time.time() - asked_at))
    return Status(status=LOADING, stage="waiting for memory", eta_s=_rounded(eta_s))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds), 1)


def _form(beats: dict[str, ReplicaBeat], ready: list[Replica]) -> str | None:
    forms = [beat.form for row in ready if (beat := beats.get(str(row.id))) and beat.form in SLOWEST]
    return min(forms, key=SLOWEST.index, default=None)
