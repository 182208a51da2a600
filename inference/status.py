"""The status of versions as clients read it: wish, replicas and import job in one word and its reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import Q
from django.utils import timezone

from inference.beats import read_beats
from inference.models import ALIVE, USUAL_LOAD_S, Deployment, Replica, ReplicaState
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


# The replicas that say something of their deployment's status.
WANTED = Q(state__in=ALIVE) | Q(state=ReplicaState.FAILED, superseded=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One word, and what applies of why, at which stage and for how many more seconds."""

    status: str
    reason: str | None = None
    stage: str | None = None
    eta_s: float | None = None


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
    deployments = {
        row.version_id: row for row in Deployment.objects.filter(which).annotate(usual_load_s=USUAL_LOAD_S)
    }
    replicas: dict[int, list[Replica]] = defaultdict(list)
    for replica in Replica.objects.filter(WANTED, deployment__in=[row.pk for row in deployments.values()]):
        replicas[replica.deployment_id].append(replica)
    loading = [
        str(row.id) for found in replicas.values() for row in found if row.state == ReplicaState.LOADING
    ]
    stages = {replica: beat.stage for replica, beat in read_beats(loading).items()}
    return {
        row.pk: _of_files(row) or _of_deployment(deployments.get(row.pk), replicas, stages) for row in rows
    }


def furthest(found: Iterable[Status]) -> Status:
    """The status of a model without a default alias."""
    return min(found, key=lambda status: FURTHEST.index(status.status), default=Status(status=UNLOADED))


def _of_files(version: ModelVersion) -> Status | None:
    """Set where the files decide alone."""
    match version.state:
        case VersionState.FETCHING:
            progress = version.progress
            return Status(status=FETCHING, stage=progress.get("stage"), eta_s=progress.get("eta_s"))
        case VersionState.FAILED:
            return Status(status=FAILED, reason=version.state_reason)
        case VersionState.REGISTERED:
            return Status(status=UNLOADED, reason="Its files were not fetched yet.")
        case VersionState.ARCHIVED:
            return Status(status=UNLOADED, reason="It is archived.")
    return None


def _asleep(deployment: Deployment) -> Status:
    usual_s: float | None = getattr(deployment, "usual_load_s", None)
    waits = deployment.wanted_at is not None
    return Status(
        status=LOADING if waits else ASLEEP,
        reason=None if waits else "Others have its memory; a request wakes it.",
        stage="waiting for memory" if waits else None,
        eta_s=None if usual_s is None else round(usual_s, 1),
    )


def _of_deployment(
    deployment: Deployment | None, replicas: dict[int, list[Replica]], stages: dict[str, str]
) -> Status:
    if deployment is None:
        return Status(status=UNLOADED)
    rows = replicas[deployment.pk]
    staying = [row for row in rows if row.state in ALIVE and not row.stop_requested]
    if any(row.state == ReplicaState.READY for row in staying):
        return Status(status=READY)
    coming = next((row for row in staying if row.state != ReplicaState.DRAINING), None)
    if coming is not None:
        usual_s: float | None = getattr(deployment, "usual_load_s", None)
        elapsed_s = (timezone.now() - coming.created_at).total_seconds()
        return Status(
            status=LOADING,
            stage=stages.get(str(coming.id)) or str(coming.state),
            eta_s=None if usual_s is None else round(max(0.0, usual_s - elapsed_s), 1),
        )
    if any(row.state in ALIVE for row in rows):
        return Status(status=DRAINING)
    if deployment.failure:
        return Status(status=FAILED, reason=deployment.failure)
    if deployment.asleep:
        return _asleep(deployment)
    failed = next((row for row in rows if row.state == ReplicaState.FAILED), None)
    if failed is not None:
        return Status(
            status=FAILED, reason=failed.reason or "The engine ended without a reason; see its log."
        )
    if deployment.replicas:
        return Status(status=LOADING, stage="waiting for a node")
    return Status(status=UNLOADED)
