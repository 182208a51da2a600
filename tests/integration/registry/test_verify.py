"""Files that rot on disk: found on load, by job and by command, and repaired from the source."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django_rq
import pytest
from django.core.management import call_command

from inference.node.files import ReplicaFiles
from mmserve.errors import Conflict, MmserveError
from registry import actions, cache, jobs, stamp, store
from registry.manifest import hash_file
from registry.models import Event, Model, ModelVersion
from registry.stamp import STAMP, damage
from tests.faulty import Proxy
from tests.integration.registry.s3_server import BUCKET, bucket_client

Versions = Callable[..., ModelVersion]
NAME = "model-1.safetensors"


@pytest.fixture
def version(model: Model, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    """Ready, its files in a local store."""
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    row = actions.register_version(model, "1", checkpoint.as_uri(), actor="tests")
    actions.import_version(row, actor="tests")
    jobs.import_version(row.pk)
    row.refresh_from_db()
    return row


def rot(version: ModelVersion, *, keep_time: bool = False) -> Path:
    file = store.location(version.path) / NAME
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return file


def test_a_load_of_rotten_files_is_refused_and_names_the_file(version: ModelVersion) -> None:
    rot(version)

    with pytest.raises(Conflict, match=f"acme/echo@1: {NAME} has the SHA-256 .* repair the version"):
        cache.hold(version)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(b""), "has 0 bytes, not"),
        (lambda file: (file.unlink(), file.mkdir()), "bytes, not|cannot be read"),
    ],
)
def test_what_is_missing_or_cut_short_is_found(version: ModelVersion, harm: Any, words: str) -> None:
    harm(store.location(version.path) / NAME)

    with pytest.raises(Conflict, match=words):
        cache.hold(version)


def test_a_file_as_noted_is_not_read_again_but_in_full_it_is(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = store.location(version.path), cache.manifest_of(version)
    rot(version, keep_time=True)

    assert damage(folder, manifest) == []
    assert [one.path for one in damage(folder, manifest, full=True)] == [NAME]


def test_a_file_that_was_only_touched_is_hashed_once_and_noted(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = store.location(version.path), cache.manifest_of(version)
    os.utime(folder / NAME)
    hashed: list[Path] = []
    real = __import__("registry.stamp", fromlist=["x"]).hash_file
    monkeypatch.setattr("registry.stamp.hash_file", lambda file: (hashed.append(file), real(file))[1])

    assert damage(folder, manifest) == damage(folder, manifest) == []
    assert hashed == [folder / NAME]


def test_a_version_from_before_stamps_is_hashed_and_stamped(version: ModelVersion) -> None:
    folder = store.location(version.path)
    (folder / STAMP).unlink()

    cache.hold(version)

    assert (folder / STAMP).is_file()


def test_a_repair_brings_back_what_the_manifest_says(version: ModelVersion) -> None:
    file = rot(version)

    assert jobs.verify_version(version.pk, True) == [NAME]

    cache.hold(version)
    kinds = Event.objects.filter(subject="acme/echo@1").values_list("kind", flat=True)
    assert list(kinds)[:2] == ["version.repaired", "version.damaged"]
    assert jobs.verify_version(version.pk) == []
    assert file.is_file()


def test_a_repair_takes_what_the_operator_trusts_the_model_with(
    model: Model, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in checkpoint.glob("*.safetensors"):
        shard.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"pickle")
    (checkpoint / "modeling.py").write_text("pass")
    actions.update_model(model, actor="tests", allow_pickle=True, trust_remote_code=True)
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    row = actions.register_version(model, "1", checkpoint.as_uri(), actor="tests")
    actions.import_version(row, actor="tests")
    jobs.import_version(row.pk)
    row.refresh_from_db()
    (store.location(row.path) / "modeling.py").write_text("rotten")

    assert jobs.verify_version(row.pk, True) == ["modeling.py"]
    cache.hold(row)


def test_a_repair_from_a_source_that_changed_is_refused_and_leaves_what_is_there(
    version: ModelVersion, checkpoint: Path
) -> None:
    file = rot(version)
    before = file.read_bytes()
    (checkpoint / NAME).write_bytes((checkpoint / NAME).read_bytes()[:-1] + b"?")

    with pytest.raises(MmserveError, match=f"{NAME} has the SHA-256"):
        jobs.verify_version(version.pk, True)
    assert file.read_bytes() == before
    last = Event.objects.first()
    assert last is not None
    assert (last.kind, NAME in last.reason) == ("version.unrepaired", True)


def test_the_command_says_what_is_damaged_and_repairs(version: ModelVersion, capsys: Any) -> None:
    call_command("model_verify", "acme/echo@1", "--json")
    assert json.loads(capsys.readouterr().out)["damage"] == []
    rot(version)
    with pytest.raises(SystemExit) as ended:
        call_command("model_verify", "acme/echo@1")
    assert ended.value.code == 4
    assert NAME in capsys.readouterr().err

    call_command("model_verify", "acme/echo@1", "--repair", "--json")
    assert json.loads(capsys.readouterr().out)["repaired"] is True
    call_command("model_verify", "acme/echo@1")


@pytest.mark.django_db(transaction=True)
def test_verify_is_queued_and_refused_where_there_is_nothing(
    version: ModelVersion, redis_url: str, version_of: Versions
) -> None:
    actions.verify_version(version, actor="ada")
    (job,) = django_rq.get_queue("ops").jobs
    assert (job.func_name, job.args) == ("registry.jobs.verify_version", [version.pk, False])

    with pytest.raises(Conflict, match="no files to verify"):
        actions.verify_version(version_of("2", "registered"), actor="ada")


@pytest.fixture
def in_bucket(
    s3: Proxy, settings: Any, model: Model, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelVersion:
    """Ready, its files in a bucket."""
    settings.S3_ENDPOINT, settings.STORAGE_URL = s3.url, f"s3://{BUCKET}/store"
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)
    row = actions.register_version(model, "1", checkpoint.as_uri(), actor="tests")
    actions.import_version(row, actor="tests")
    jobs.import_version(row.pk)
    row.refresh_from_db()
    return row


def test_objects_that_rot_in_a_bucket_are_found_and_repaired(
    in_bucket: ModelVersion, s3: Proxy, s3_server: tuple[str, int]
) -> None:
    assert jobs.verify_version(in_bucket.pk) == []
    client = bucket_client(s3_server)
    client.put_object(Bucket=BUCKET, Key=f"store/{in_bucket.path}/{NAME}", Body=b"rotten")
    client.delete_object(Bucket=BUCKET, Key=f"store/{in_bucket.path}/config.json")
    s3.seen.clear()

    assert sorted(jobs.verify_version(in_bucket.pk, True)) == ["config.json", NAME]

    written = {path.rpartition("/")[2] for method, path, _ in s3.seen if method == "PUT"}
    assert written == {"config.json", NAME}
    assert jobs.verify_version(in_bucket.pk) == []
    cache.hold(in_bucket).release()


def test_the_command_brings_a_rotten_copy_from_the_store_again(in_bucket: ModelVersion, capsys: Any) -> None:
    with cache.holding(in_bucket) as folder:
        status = (folder / NAME).stat()
        good = (folder / NAME).read_bytes()
        (folder / NAME).write_bytes(good[:-1] + b"?")
        os.utime(folder / NAME, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(SystemExit):
        call_command("model_verify", "acme/echo@1")

    call_command("model_verify", "acme/echo@1", "--repair")

    with cache.holding(in_bucket) as folder:
        assert (folder / NAME).read_bytes() == good


def test_a_repair_takes_the_place_of_the_files_in_one_step(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    rot(version)
    folder, seen = store.location(version.path), []
    real = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda one, other: (seen.append(folder.is_dir()), real(one, other))[1]
    )

    jobs.verify_version(version.pk, True)

    assert seen
    assert all(seen)
    assert [entry.name for entry in store.work_root().iterdir() if entry.is_dir()] == []


def test_what_a_crash_left_of_a_removal_is_swept(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = store.work_root() / "1-7.1234.removed"
    left.mkdir()
    (left / NAME).write_bytes(b"x")
    store.sweep()
    assert left.exists()

    monkeypatch.setattr("registry.store.local.ABANDONED_AFTER_S", -1.0)
    store.sweep()
    assert not left.exists()


@pytest.mark.django_db(transaction=True)
def test_a_node_does_not_wait_for_the_hash_of_a_file_that_was_touched(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, go_on, by = ReplicaFiles(), threading.Event(), []

    def hash_slowly(file: Path) -> str:
        by.append(threading.current_thread())
        assert go_on.wait(30)
        return hash_file(file)

    monkeypatch.setattr(stamp, "hash_file", hash_slowly)
    assert files.folders("untouched", [version]) == [store.location(version.path)]
    os.utime(store.location(version.path) / NAME)
    assert files.folders("touched", [version]) is None, "it is told at once that it is not yet known"
    assert files.progress("touched") is not None
    go_on.set()
    files._pool.shutdown(wait=True)
    assert files.folders("touched", [version]) == [store.location(version.path)]
    assert by
    assert threading.current_thread() not in by


@pytest.mark.django_db(transaction=True)
def test_a_node_tells_what_the_hash_of_a_touched_file_brought_to_light(version: ModelVersion) -> None:
    rot(version)
    files = ReplicaFiles()
    assert files.folders("rotten", [version]) is None
    files._pool.shutdown(wait=True)
    with pytest.raises(Conflict, match=f"{NAME} has the SHA-256 .* repair the version"):
        files.folders("rotten", [version])
