"""The ops job that brings a version's files."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django_rq
import pytest
from django.core.management import call_command
from django.db import connection
from rq.job import JobStatus

from mmserve.errors import InvalidRequest
from registry import actions, jobs, store
from registry.models import Event, ModelVersion, VersionState
from registry.progress import Progress
from tests.checkpoints import write_checkpoint

Versions = Callable[..., ModelVersion]


@pytest.fixture
def fetching(version_of: Versions, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    """A version that was asked for, its job not run yet."""
    version = version_of("1", VersionState.REGISTERED)
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    actions.import_version(version, actor="tests")
    return version


def files_below(folder: Path) -> list[str]:
    """Without the stamp, which is no file of a version."""
    found = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return sorted(str(file) for file in found if file.name != ".stamp.json")


def test_an_import_publishes_the_files_with_facts_and_manifest(fetching: ModelVersion) -> None:
    assert jobs.import_version(fetching.pk) == VersionState.READY

    fetching.refresh_from_db()
    folder = store.location(fetching.path)
    assert files_below(folder) == [file.path for file in fetching.files.all()]
    assert all(file.size_bytes == (folder / file.path).stat().st_size for file in fetching.files.all())
    assert fetching.facts["parameters"] == 320
    assert fetching.capabilities == ["completion", "chat", "json"]
    assert (fetching.progress, fetching.state_reason) == ({}, "")
    assert fetching.ready_at is not None
    kinds = Event.objects.filter(subject="acme/echo@1").values_list("kind", flat=True)
    assert list(kinds) == ["version.ready", "version.fetching", "version.registered"]


def test_an_import_leaves_nothing_but_the_published_files(fetching: ModelVersion) -> None:
    jobs.import_version(fetching.pk)

    fetching.refresh_from_db()
    work = store.root() / store.WORK
    assert files_below(work) == [f"import-{fetching.pk}.lock"]


def test_a_second_run_does_nothing(fetching: ModelVersion) -> None:
    jobs.import_version(fetching.pk)
    before = Event.objects.count()

    assert jobs.import_version(fetching.pk) == VersionState.READY
    assert Event.objects.count() == before


def test_what_an_operator_set_is_not_overwritten(fetching: ModelVersion) -> None:
    actions.update_version(fetching, actor="tests", capabilities=["completion"], price_input="0.5")

    jobs.import_version(fetching.pk)

    fetching.refresh_from_db()
    assert fetching.capabilities == ["completion"]
    assert str(fetching.price_input) == "0.500000"


def test_a_failure_says_why_and_a_retry_repairs(fetching: ModelVersion, checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    good = config.read_text()
    config.write_text("{")

    with pytest.raises(InvalidRequest):
        jobs.import_version(fetching.pk)
    fetching.refresh_from_db()
    assert fetching.state == VersionState.FAILED
    assert "config.json is not JSON" in fetching.state_reason
    failed = Event.objects.first()
    assert failed is not None
    assert (failed.kind, failed.reason) == ("version.failed", fetching.state_reason)

    config.write_text(good)
    actions.import_version(fetching, actor="tests")
    assert jobs.import_version(fetching.pk) == VersionState.READY
    fetching.refresh_from_db()
    assert fetching.state_reason == ""


def test_a_full_disk_is_a_reason_in_words(fetching: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "read_manifest", full)

    with pytest.raises(OSError, match="No space left"):
        jobs.import_version(fetching.pk)
    fetching.refresh_from_db()
    assert "No space left on device" in fetching.state_reason


def test_what_a_dead_import_left_behind_is_replaced(fetching: ModelVersion) -> None:
    leftover = store.root() / "acme--echo" / f"1-{fetching.pk}"
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").write_bytes(b"half")
    half = store.root() / store.WORK / f"import-{fetching.pk}" / "fetched"
    half.mkdir(parents=True)
    (half / "half.gguf").write_bytes(b"half")

    assert jobs.import_version(fetching.pk) == VersionState.READY

    assert not (leftover / "half.safetensors").exists()


def test_a_version_that_was_deleted_meanwhile_is_no_error(fetching: ModelVersion) -> None:
    pk = fetching.pk
    ModelVersion.objects.update(progress={})
    actions.delete_version(ModelVersion.objects.get(), actor="tests")

    assert jobs.import_version(pk) == "deleted"


def test_an_import_whose_job_died_can_be_asked_for_again(fetching: ModelVersion) -> None:
    fetching.refresh_from_db()
    with pytest.raises(Exception, match="it cannot become fetching"):
        actions.import_version(fetching, actor="tests")

    fetching.progress = {"stage": "convert", "at": "2020-01-01T00:00:00+00:00"}
    actions.import_version(fetching, actor="tests")

    assert fetching.progress["stage"] == "queued"


def test_the_files_of_a_deleted_version_are_deleted(
    fetching: ModelVersion, django_capture_on_commit_callbacks: Any
) -> None:
    jobs.import_version(fetching.pk)
    fetching.refresh_from_db()
    folder = store.location(fetching.path)

    with django_capture_on_commit_callbacks(execute=True):
        actions.delete_version(fetching, actor="tests")

    assert not folder.exists()


def test_progress_is_written_at_most_once_a_second_with_the_time_left(fetching: ModelVersion) -> None:
    now = 100.0
    progress = Progress(fetching.pk, fetching.attempt, clock=lambda: now)

    def written() -> dict[str, Any]:
        fetching.refresh_from_db()
        return {name: fetching.progress[name] for name in ("stage", "done_bytes", "total_bytes", "eta_s")}

    progress.enter("fetch")
    progress.report(10, 100)
    assert written() == {"stage": "fetch", "done_bytes": 0, "total_bytes": None, "eta_s": None}
    now = 102.0
    progress.report(20, 100)
    assert written() == {"stage": "fetch", "done_bytes": 20, "total_bytes": 100, "eta_s": 16.0}
    now = 102.9
    progress.report(30, 100)
    assert written()["done_bytes"] == 20


def test_a_lock_that_another_process_holds_leaves_the_work_to_it(fetching: ModelVersion) -> None:
    holds, release = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with jobs._alone(fetching.pk, fetching.attempt):
            os.write(holds[1], b"x")
            os.read(release[0], 1)
        os._exit(0)
    os.read(holds[0], 1)

    assert jobs.import_version(fetching.pk) == VersionState.FETCHING

    os.write(release[1], b"x")
    os.waitpid(pid, 0)
    assert jobs.import_version(fetching.pk) == VersionState.READY
    for end in (*holds, *release):
        os.close(end)


def test_names_with_a_slash_do_not_nest_in_the_store(fetching: ModelVersion) -> None:
    jobs.import_version(fetching.pk)

    fetching.refresh_from_db()
    assert fetching.path == f"acme--echo/1-{fetching.pk}"
    for path in ("", ".", "..", "/etc", "a/../.."):
        with pytest.raises(InvalidRequest):
            store.location(path)


@pytest.mark.django_db(transaction=True)
def test_the_stock_rqworker_command_runs_the_job(version_of: Versions, redis_url: str) -> None:
    version = version_of("1", VersionState.REGISTERED)
    actions.import_version(version, actor="tests")
    queue = django_rq.get_queue("ops")
    assert len(queue) == 1
    raw = queue.jobs[0].data
    assert json.loads(raw)[0] == "registry.jobs.import_version"

    connection.close()
    worker = multiprocessing.get_context("fork").Process(
        target=call_command, args=("rqworker", "ops"), kwargs={"burst": True, "verbosity": 0}
    )
    worker.start()
    worker.join(60)

    assert worker.exitcode == 0
    version.refresh_from_db()
    assert version.state == VersionState.READY
    assert len(queue) == 0
    assert len(queue.finished_job_registry) == 1


@pytest.mark.django_db(transaction=True)
def test_a_job_that_somebody_else_wrote_into_redis_does_not_run(redis_url: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    queue = django_rq.get_queue("ops")
    job = queue.enqueue("pathlib.Path.touch", str(marker))

    connection.close()
    worker = multiprocessing.get_context("fork").Process(
        target=call_command, args=("rqworker", "ops"), kwargs={"burst": True, "verbosity": 0}
    )
    worker.start()
    worker.join(60)

    assert not marker.exists()
    assert job.get_status(refresh=True) == JobStatus.FAILED
    assert "not in the table of ops jobs" in job.latest_result().exc_string


def test_two_imports_do_not_share_a_folder(version_of: Versions, data_dir: Path) -> None:
    other = write_checkpoint(data_dir / "other", chat=False)
    model = version_of("1", VersionState.REGISTERED).model
    actions.register_version(model, "2", other.as_uri(), actor="tests")
    for version in ModelVersion.objects.select_related("model"):
        actions.versions.transition(version, VersionState.FETCHING)
        jobs.import_version(version.pk)

    first, second = ModelVersion.objects.order_by("pk")
    assert first.path != second.path
    assert (first.capabilities, second.capabilities) == (
        ["completion", "chat", "json"],
        ["completion", "json"],
    )


@pytest.mark.django_db(transaction=True)
def test_an_import_whose_worker_died_is_asked_for_again_but_a_waiting_one_is_not(
    version_of: Versions, redis_url: str
) -> None:
    version = version_of("1", VersionState.REGISTERED)
    actions.import_version(version, actor="tests")
    queue = django_rq.get_queue("ops")
    (job,) = queue.jobs
    silent = {"stage": "queued", "at": "2020-01-01T00:00:00+00:00"}
    ModelVersion.objects.filter(pk=version.pk).update(progress=silent)

    actions.versions.recover_imports()
    assert [found.id for found in queue.jobs] == [job.id]

    # As RQ leaves it when a worker is killed: started, and the heartbeat stops.
    queue.empty()
    job.save()
    job.set_status(JobStatus.STARTED)
    job.heartbeat(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), 60)
    ModelVersion.objects.filter(pk=version.pk).update(progress=silent)
    actions.versions.recover_imports()
    assert [found.id for found in queue.jobs] == [f"import-{version.pk}-2"]
    event = Event.objects.first()
    assert event is not None
    assert (event.kind, event.actor) == ("version.fetching", "controller")
