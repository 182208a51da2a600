"""Versions from and in S3, over a real server and a proxy that misbehaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from inference.node.files import HeldFiles, ReplicaFiles
from mmserve.errors import Conflict, MmserveError
from registry import actions, cache, jobs, store
from registry.fetch import fetcher
from registry.models import Event, Model, ModelVersion
from tests.checkpoints import safetensors, write_checkpoint
from tests.faulty import Fault, Proxy
from tests.integration.registry.s3_server import BUCKET, bucket_client, no_secret_in, upload

Server = tuple[str, int]
Register = Callable[..., ModelVersion]
BIG = 300_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(fetcher, "PART_BYTES", 64 * 1024)
    monkeypatch.setattr(
        fetcher.Fetcher.__init__, "__kwdefaults__", {"bytes_per_s": 0, "part_bytes": 64 * 1024, "threads": 4}
    )
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)


@pytest.fixture
def checkpoint_in_s3(s3: Proxy, s3_server: Server, data_dir: Path) -> str:
    folder = write_checkpoint(data_dir / "big")
    weights = {"w": ("BF16", [BIG // 2], BIG)}
    (folder / "model-1.safetensors").write_bytes(safetensors(weights)[:-BIG] + os.urandom(BIG))
    upload(s3_server, folder, "llama")
    return f"s3://{BUCKET}/llama?endpoint={s3.url}"


@pytest.fixture
def asked(model: Model, checkpoint_in_s3: str) -> ModelVersion:
    """A version whose files were asked for."""
    version = actions.register_version(model, "1", checkpoint_in_s3, actor="tests")
    return actions.import_version(version, actor="tests")


def failed(version: ModelVersion) -> str:
    """Why the import failed; asked for again."""
    with pytest.raises(MmserveError):
        jobs.import_version(version.pk)
    version.refresh_from_db()
    assert version.state == "failed"
    events = json.dumps(list(Event.objects.values_list("reason", "data")))
    assert no_secret_in(version.state_reason)
    assert no_secret_in(events)
    reason = version.state_reason
    actions.import_version(version, actor="tests")
    return reason


def repaired(version: ModelVersion) -> None:
    assert jobs.import_version(version.pk) == "ready"


def weights_get(method: str, path: str) -> bool:
    return method == "GET" and "model-1" in path


def test_a_version_comes_from_s3_with_facts_and_digests(asked: ModelVersion, s3: Proxy) -> None:
    repaired(asked)

    asked.refresh_from_db()
    assert asked.facts["parameters"] == BIG // 2 + 64
    assert asked.files.count() == 4
    ranges = [header for method, path, header in s3.seen if weights_get(method, path)]
    assert len(ranges) == 5
    assert None not in ranges


def test_a_connection_that_is_cut_is_continued(asked: ModelVersion, s3: Proxy) -> None:
    cut = iter([Fault(cut_after=1000)] * 6)
    s3.plan = lambda method, path, headers: next(cut, None) if weights_get(method, path) else None

    repaired(asked)


def test_an_object_that_is_corrupted_on_the_way_is_noticed_by_its_digest(
    asked: ModelVersion,
    s3: Proxy,
    model: Model,
    checkpoint_in_s3: str,
) -> None:
    repaired(asked)
    twin = actions.register_version(model, "2", checkpoint_in_s3, actor="tests")
    for file in asked.files.all():
        twin.files.create(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
    actions.import_version(twin, actor="tests")
    s3.plan = lambda method, path, headers: Fault(corrupt_at=77) if weights_get(method, path) else None

    assert "model-1.safetensors has the SHA-256" in failed(twin)

    s3.plan = lambda *args: None
    repaired(twin)


def test_an_object_that_changes_meanwhile_is_noticed(
    asked: ModelVersion,
    s3: Proxy,
    s3_server: Server,
) -> None:
    changed = threading.Event()

    def change(method: str, path: str, headers: Any) -> None:
        if weights_get(method, path) and not changed.is_set():
            changed.set()
            client = bucket_client(s3_server)
            old = client.get_object(Bucket=BUCKET, Key="llama/model-1.safetensors")["Body"].read()
            client.put_object(Bucket=BUCKET, Key="llama/model-1.safetensors", Body=old[:-1] + b"?")

    s3.plan = change

    assert "llama/model-1.safetensors was changed while it was fetched" in failed(asked)
    repaired(asked)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=503), "given up after 5 tries"),
        (Fault(status=403), "refused its keys"),
        (Fault(status=404), "There is no s3://models/llama/model-1.safetensors"),
        (Fault(cut_after=0), "given up after 5 tries"),
    ],
)
def test_a_store_that_fails_says_why_and_a_retry_repairs(
    asked: ModelVersion,
    s3: Proxy,
    fault: Fault,
    words: str,
) -> None:
    s3.plan = lambda method, path, headers: fault if weights_get(method, path) else None

    reason = failed(asked)
    assert words in reason
    assert "model-1.safetensors" in reason

    s3.plan = lambda *args: None
    before = s3.body_bytes
    repaired(asked)
    # The small files were whole already.
    assert s3.body_bytes - before < BIG + 20_000


def test_a_vanished_bucket_and_a_store_that_is_down_say_so(
    model: Model,
    s3: Proxy,
    data_dir: Path,
    settings: Any,
) -> None:
    gone = actions.register_version(model, "1", f"s3://nowhere/x?endpoint={s3.url}", actor="tests")
    actions.import_version(gone, actor="tests")
    assert failed(gone) == "There is no bucket nowhere."

    settings.S3_ENDPOINTS = ["http://127.0.0.1:9"]
    down = actions.register_version(model, "2", "s3://nowhere/x?endpoint=http://127.0.0.1:9", actor="tests")
    actions.import_version(down, actor="tests")
    assert "does not answer for bucket nowhere" in failed(down)


def test_a_zero_byte_shard_and_a_missing_one_are_named(
    asked: ModelVersion,
    s3: Proxy,
    s3_server: Server,
) -> None:
    client = bucket_client(s3_server)
    client.put_object(Bucket=BUCKET, Key="llama/model-2.safetensors", Body=b"")
    assert failed(asked) == "model-2.safetensors is empty (0 bytes)"

    client.delete_object(Bucket=BUCKET, Key="llama/model-2.safetensors")
    index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    client.put_object(
        Bucket=BUCKET, Key="llama/model.safetensors.index.json", Body=json.dumps(index).encode()
    )
    assert failed(asked) == "model.safetensors.index.json names 'model-2.safetensors', which is not here"


def test_a_source_with_too_many_files_is_refused(
    asked: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.sources.selection.MAX_LISTED", 3)

    assert "lists more than 3 files" in failed(asked)


def test_a_slow_server_is_waited_for(
    asked: ModelVersion,
    s3: Proxy,
) -> None:
    s3.plan = lambda method, path, headers: Fault(delay_s=0.3) if weights_get(method, path) else None

    repaired(asked)


@pytest.mark.django_db(transaction=True)
def test_an_import_that_is_killed_moves_only_what_is_missing(
    asked: ModelVersion,
    s3: Proxy,
) -> None:
    s3.plan = lambda method, path, headers: (
        Fault(delay_s=30)
        if weights_get(method, path) and "bytes=262144" in headers.get("Range", "")
        else None
    )
    connection.close()
    worker = multiprocessing.get_context("fork").Process(target=jobs.import_version, args=(asked.pk,))
    worker.start()
    until = time.monotonic() + 20
    journal = store.work_root() / f"import-{asked.pk}" / "fetched" / ".journal"
    while not journal.exists() or journal.read_text().count('"part"') < 6:
        assert time.monotonic() < until, "the fetch does not get on"
        time.sleep(0.05)
    worker.kill()
    worker.join()
    s3.plan = lambda *args: None
    before = s3.body_bytes

    assert jobs.import_version(asked.pk) == "ready"

    assert s3.body_bytes - before < 64 * 1024


@pytest.mark.parametrize(
    "uri",
    [
        "s3://models/x?endpoint=http://169.254.169.254",
        "s3://models/x?endpoint=http://localhost:1",
        "s3://models/x?endpoint=https://user:pw@minio.example.org",
        "s3://models/x?colour=red",
        "s3://models/x#frag",
        "s3://B/x",
        "s3:///x",
    ],
)
def test_an_endpoint_that_is_not_listed_is_refused(model: Model, s3: Proxy, uri: str) -> None:
    with pytest.raises(MmserveError) as refused:
        actions.register_version(model, "1", uri, actor="tests")

    assert refused.value.param == "source_uri"


@pytest.fixture
def s3_store(s3: Proxy, settings: Any, data_dir: Path) -> Proxy:
    """The store itself is a bucket."""
    settings.S3_ENDPOINT = s3.url
    settings.STORAGE_URL = f"s3://{BUCKET}/store"
    settings.CACHE_BYTES = 0
    return s3


def imported(model: Model, name: str, checkpoint: Path) -> ModelVersion:
    version = actions.register_version(model, name, checkpoint.as_uri(), actor="tests")
    actions.import_version(version, actor="tests")
    jobs.import_version(version.pk)
    version.refresh_from_db()
    return version


def test_a_version_is_stored_in_s3_and_brought_into_the_cache_once(
    s3_store: Proxy, model: Model, checkpoint: Path
) -> None:
    version = imported(model, "1", checkpoint)
    assert not cache.is_here(version)

    with cache.holding(version) as folder:
        assert {file.path: (folder / file.path).stat().st_size for file in version.files.all()} == {
            file.path: file.size_bytes for file in version.files.all()
        }
    moved = s3_store.body_bytes
    with cache.holding(version):
        pass
    assert s3_store.body_bytes == moved


@pytest.mark.django_db(transaction=True)
def test_an_engines_files_and_its_drafts_come_together_and_are_held_until_it_ends(
    s3_store: Proxy, model: Model, checkpoint: Path
) -> None:
    target, draft = imported(model, "1", checkpoint), imported(model, "2", checkpoint)
    files = ReplicaFiles()
    assert files.folders("one", [target, draft]) is None
    told = files.progress("one")
    assert told is not None
    files._pool.shutdown(wait=True)
    # Counted as one fetch.
    total = sum(file.size_bytes for one in (target, draft) for file in one.files.all())
    assert (told.done_bytes, told.total_bytes) == (total, total)
    assert files.folders("one", [target, draft]) == [cache.place_of(target), cache.place_of(draft)]
    assert files.held("one") == [(target, cache.place_of(target)), (draft, cache.place_of(draft))]
    assert {one.name for one in cache.entries() if one.in_use} == set(map(cache.entry_name, (target, draft)))
    assert cache.prune() == []

    # Its deployment got another draft before it was started.
    assert files.folders("one", [target]) == [cache.place_of(target)]
    assert [one.name for one in cache.entries() if one.in_use] == [cache.entry_name(target)]
    files.release("one")
    assert not any(one.in_use for one in cache.entries())


def test_a_draft_that_cannot_be_brought_lets_go_of_its_target(
    s3_store: Proxy, model: Model, checkpoint: Path
) -> None:
    target, draft = imported(model, "1", checkpoint), imported(model, "2", checkpoint)
    store.remove(draft.path)
    with pytest.raises(MmserveError):
        HeldFiles([target, draft])
    [entry] = cache.entries()
    assert (entry.name, entry.in_use) == (cache.entry_name(target), False)


@pytest.mark.django_db(transaction=True)
def test_ten_at_once_fetch_once(s3_store: Proxy, model: Model, checkpoint: Path) -> None:
    version = imported(model, "1", checkpoint)
    total = sum(file.size_bytes for file in version.files.all())
    before = s3_store.body_bytes
    connection.close()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hold_and_check, args=(version.pk,)) for _ in range(10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0] * 10
    assert s3_store.body_bytes - before == total


def _hold_and_check(pk: int) -> None:
    version = ModelVersion.objects.get(pk=pk)
    with cache.holding(version) as folder:
        assert all((folder / file.path).stat().st_size == file.size_bytes for file in version.files.all())


def test_a_file_that_rots_in_the_cache_is_found_and_fetched_again(
    s3_store: Proxy, model: Model, checkpoint: Path
) -> None:
    version = imported(model, "1", checkpoint)
    with cache.holding(version) as folder:
        good = (folder / "model-1.safetensors").read_bytes()
        (folder / "model-1.safetensors").write_bytes(good[:-1] + b"?")

    with cache.holding(version) as folder:
        assert (folder / "model-1.safetensors").read_bytes() == good


def test_the_cache_evicts_the_least_recently_used_but_never_what_is_held_or_pinned(
    s3_store: Proxy, model: Model, checkpoint: Path, settings: Any
) -> None:
    versions = [imported(model, str(number), checkpoint) for number in range(5)]
    held = cache.hold(versions[0])
    size = cache.entries()[0].size_bytes  # with its stamp
    settings.CACHE_BYTES = 3 * size
    cache.hold(versions[1]).release()
    cache.pin(versions[1], on=True)
    cache.hold(versions[2]).release()

    cache.hold(versions[3]).release()
    here = [cache.is_here(version) for version in versions]
    assert here == [True, True, False, True, False]
    states = {entry.name[-1]: (entry.in_use, entry.pinned) for entry in cache.entries()}
    assert states[str(versions[0].pk)[-1]] == (True, False)

    settings.CACHE_BYTES = 2 * size
    with pytest.raises(Conflict, match="loaded, loading or pinned"):
        cache.hold(versions[4])
    held.release()
    cache.hold(versions[4]).release()
    assert not cache.is_here(versions[0])


def test_two_that_come_at_once_do_not_count_the_same_room(
    s3_store: Proxy, model: Model, checkpoint: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (imported(model, str(number), checkpoint) for number in range(2))
    size = sum(file.size_bytes for file in first.files.all())
    settings.CACHE_BYTES = size * 3 // 2
    real, refused = fetcher.Fetcher.fetch, []

    def meanwhile(one: Any, remotes: Any) -> Any:
        monkeypatch.setattr(fetcher.Fetcher, "fetch", real)
        with pytest.raises(Conflict, match="loaded, loading or pinned") as refusal:
            cache.hold(second)
        refused.append(refusal.value)
        return real(one, remotes)

    monkeypatch.setattr(fetcher.Fetcher, "fetch", meanwhile)
    cache.hold(first).release()
    assert refused

    cache.hold(second).release()
    assert [cache.is_here(version) for version in (first, second)] == [False, True]
    assert list(cache.root().glob("*.room")) == []


def test_what_a_crash_left_in_the_cache_is_swept(s3_store: Proxy, model: Model, checkpoint: Path) -> None:
    version = imported(model, "1", checkpoint)
    cache.hold(version).release()
    (cache.root() / "dead.bringing").mkdir()
    (cache.root() / "dead.bringing" / "half.part").write_bytes(b"x")
    (cache.root() / "gone.1.removed").mkdir()

    assert [entry.name for entry in cache.prune(0)] == [cache.entry_name(version)]
    assert [entry for entry in cache.root().iterdir() if entry.is_dir()] == []


def test_an_upload_that_fails_leaves_nothing_and_says_why(
    s3_store: Proxy,
    model: Model,
    checkpoint: Path,
    s3_server: Server,
) -> None:
    version = actions.register_version(model, "1", checkpoint.as_uri(), actor="tests")
    actions.import_version(version, actor="tests")
    s3_store.plan = lambda method, path, headers: (
        Fault(status=403) if method == "PUT" and "model-2" in path else None
    )
    assert "refused its keys" in failed(version)
    assert "Contents" not in bucket_client(s3_server).list_objects_v2(Bucket=BUCKET, Prefix="store")

    s3_store.plan = lambda *args: None
    repaired(version)


@pytest.mark.django_db(transaction=True)
def test_a_deleted_versions_objects_go(
    s3_store: Proxy,
    model: Model,
    checkpoint: Path,
    s3_server: Server,
) -> None:
    version = imported(model, "1", checkpoint)
    assert "Contents" in bucket_client(s3_server).list_objects_v2(Bucket=BUCKET, Prefix="store")

    actions.delete_version(version, actor="tests")

    assert "Contents" not in bucket_client(s3_server).list_objects_v2(Bucket=BUCKET, Prefix="store")


def test_cache_commands(s3_store: Proxy, model: Model, checkpoint: Path, capsys: Any) -> None:
    version = imported(model, "1", checkpoint)
    cache.hold(version).release()
    call_command("cache_list", "--json")
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["id"], row["in_use"], row["pinned"]) == ("acme/echo@1", False, False)
    call_command("cache_verify", "--json")
    assert json.loads(capsys.readouterr().out)[0]["damage"] == []
    call_command("cache_prune", "--json")
    assert json.loads(capsys.readouterr().out)[0]["entry"] == cache.entry_name(version)
    assert cache.entries() == []
