"""Fetching: ranges, resume, digests, bounds; the remote side is a list of bytes that can misbehave."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmserve.errors import Conflict, InvalidRequest, Unavailable
from registry.fetch import Chunks, Fetcher, FetchInterrupted, RemoteFile, fetcher
from registry.fetch.bandwidth import Bandwidth

PART = 1000


def quiet(*args: Any) -> None:
    pass


class Remote:
    """Bytes elsewhere; counts what is read of them."""

    def __init__(self, content: bytes, path: str = "model.safetensors", **fields: Any) -> None:
        self.content = content
        self.read: list[tuple[int, int]] = []
        self.lock = threading.Lock()
        self.before: Callable[[int, int], None] = lambda start, end: None
        self.short: Callable[[int, int], int] = lambda start, end: end
        fields = {"validator": "v1", "sha256": None, **fields}
        self.file = RemoteFile(path=path, size_bytes=len(content), open=self.open, **fields)

    @contextmanager
    def open(self, start: int, end: int) -> Iterator[Chunks]:
        with self.lock:
            self.read.append((start, end))
        self.before(start, end)
        stop = self.short(start, end)
        yield (self.content[at : min(at + 300, stop)] for at in range(start, stop, 300))

    @property
    def bytes_read(self) -> int:
        return sum(end - start for start, end in self.read)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_of_a_file_without_a_validator_and_a_digest_nothing_is_kept(tmp_path: Path) -> None:
    content, other = os.urandom(5 * PART), os.urandom(5 * PART)
    first = Remote(content, validator="")

    def gone(start: int, end: int) -> None:
        if start >= 3 * PART:
            raise InvalidRequest("gone")

    first.before = gone
    with pytest.raises(InvalidRequest):
        Fetcher(tmp_path, quiet, part_bytes=PART, threads=1).fetch([first.file])

    found = Fetcher(tmp_path, quiet, part_bytes=PART, threads=1).fetch([Remote(other, validator="").file])

    assert found == {"model.safetensors": digest(other)}
    assert (tmp_path / "model.safetensors").read_bytes() == other


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def content() -> bytes:
    return os.urandom(10_500)


def fetch(into: Path, *remotes: Remote, **options: Any) -> dict[str, str]:
    return Fetcher(into, quiet, part_bytes=PART, **options).fetch([remote.file for remote in remotes])


def test_files_arrive_whole_with_their_digests(tmp_path: Path, content: bytes) -> None:
    files = [Remote(content, "a"), Remote(b"", "sub/empty"), Remote(b"x", "sub/b")]

    found = fetch(tmp_path, *files)

    assert found == {file.file.path: digest(file.content) for file in files}
    for file in files:
        assert (tmp_path / file.file.path).read_bytes() == file.content
    assert sorted(files[0].read) == [(at, min(at + PART, 10_500)) for at in range(0, 10_500, PART)]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_range_that_ends_early_is_continued_where_it_ended(
    tmp_path: Path, content: bytes, threads: int
) -> None:
    remote = Remote(content, sha256=digest(content))
    remote.short = lambda start, end: min(end, start + 400)

    fetch(tmp_path, remote, threads=threads)

    assert (tmp_path / "model.safetensors").read_bytes() == content
    assert (400, 1000) in remote.read


def test_a_server_that_gives_nothing_is_given_up(tmp_path: Path, content: bytes) -> None:
    remote = Remote(content)
    remote.short = lambda start, end: start

    with pytest.raises(Unavailable, match="model.safetensors: given up after 5 tries"):
        fetch(tmp_path, remote)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_wrong_digest_names_the_file_and_a_retry_fetches_it_anew(tmp_path: Path, content: bytes) -> None:
    good, bad = Remote(b"fine", "a", sha256=digest(b"fine")), Remote(content, sha256="0" * 64)

    with pytest.raises(
        InvalidRequest, match=f"model.safetensors has the SHA-256 {digest(content)}, not 0000"
    ):
        fetch(tmp_path, good, bad)
    assert not (tmp_path / "model.safetensors").exists()

    again, kept = Remote(content, sha256=digest(content)), Remote(b"fine", "a", sha256=digest(b"fine"))
    fetch(tmp_path, kept, again)
    assert again.bytes_read == len(content)
    assert kept.read == []


def test_a_later_attempt_moves_only_what_is_missing(tmp_path: Path, content: bytes) -> None:
    first = Remote(content)

    def stop_at_half(start: int, end: int) -> None:
        if start >= 5000:
            raise InvalidRequest("gone")

    first.before = stop_at_half
    with pytest.raises(InvalidRequest, match="gone"):
        fetch(tmp_path, first, threads=1)

    second = Remote(content)
    assert fetch(tmp_path, second) == {"model.safetensors": digest(content)}
    assert sorted(second.read)[0] == (5000, 6000)
    assert second.bytes_read == 5500


def test_parts_of_another_state_of_the_file_are_not_mixed_in(tmp_path: Path, content: bytes) -> None:
    first = Remote(content)
    first.before = lambda start, end: (_ for _ in ()).throw(InvalidRequest("gone")) if start >= 5000 else None
    with pytest.raises(InvalidRequest):
        fetch(tmp_path, first, threads=1)

    changed = os.urandom(len(content))
    assert fetch(tmp_path, Remote(changed, validator="v2")) == {"model.safetensors": digest(changed)}


def test_after_a_reboot_only_files_that_were_synced_are_trusted(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, whole = Remote(content), Remote(b"whole", "a")
    first.before = lambda start, end: (_ for _ in ()).throw(InvalidRequest("gone")) if start >= 5000 else None
    fetch(tmp_path, whole)
    with pytest.raises(InvalidRequest):
        fetch(tmp_path, whole, first, threads=1)

    boot = tmp_path / "boot"
    boot.write_text("another")
    monkeypatch.setattr("registry.fetch.journal.BOOT_ID", boot)
    second, kept = Remote(content), Remote(b"whole", "a")
    fetch(tmp_path, kept, second)

    assert second.bytes_read == len(content)
    assert kept.read == []


def test_a_journal_that_was_cut_in_the_middle_of_a_line_is_read(tmp_path: Path, content: bytes) -> None:
    first = Remote(content)
    first.before = lambda start, end: (_ for _ in ()).throw(InvalidRequest("gone")) if start >= 5000 else None
    with pytest.raises(InvalidRequest):
        fetch(tmp_path, first, threads=1)
    journal = tmp_path / ".journal"
    journal.write_bytes(journal.read_bytes()[:-10] + b"\xff{")

    second = Remote(content)
    assert fetch(tmp_path, second) == {"model.safetensors": digest(content)}
    assert second.bytes_read == 6500


def test_a_file_that_cannot_be_read_in_ranges_is_read_whole_and_again(tmp_path: Path, content: bytes) -> None:
    remote = Remote(content, ranges=False)
    lengths = iter([4000, 2000, len(content)])
    remote.short = lambda start, end: min(end, next(lengths))

    assert fetch(tmp_path, remote) == {"model.safetensors": digest(content)}
    assert remote.read == [(0, len(content))] * 3


def test_a_server_that_sends_too_much_is_refused(tmp_path: Path, content: bytes) -> None:
    remote = Remote(content)
    remote.short = lambda start, end: end + 1

    with pytest.raises(InvalidRequest, match="more than was asked for"):
        fetch(tmp_path, remote)


def test_a_report_that_raises_stops_everything(tmp_path: Path, content: bytes) -> None:
    remote = Remote(content)
    blocked = threading.Event()
    remote.before = lambda start, end: (blocked.wait(0.05), None)[1]

    def cancelled(done: int, total: int | None, files: Any = ()) -> None:
        if done:
            raise Conflict("cancelled")

    before = set(threading.enumerate())
    with pytest.raises(Conflict, match="cancelled"):
        Fetcher(tmp_path, cancelled, part_bytes=PART).fetch([remote.file])
    assert not set(threading.enumerate()) - before


def test_a_disk_that_is_too_full_is_said_before_the_first_byte(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(content)
    monkeypatch.setattr(fetcher, "SPARE_BYTES", 2**60)

    with pytest.raises(Conflict, match="disk is too full: 10500 bytes are to come"):
        fetch(tmp_path, remote)
    assert remote.read == []


def test_a_disk_that_fills_up_meanwhile_names_the_file() -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.fail("/dev/shm is needed: a small file system of its own")
    remote = Remote(b"x" * 2000)

    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    into = Path("/dev/shm") / f"fetch-{os.getpid()}"
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "pwrite", full)
    try:
        with pytest.raises(Conflict, match="model.safetensors: no space is left"):
            fetch(into, remote)
    finally:
        patch.undo()
        for file in into.iterdir():
            file.unlink()
        into.rmdir()


def test_reports_go_up_to_the_total_and_name_files(tmp_path: Path, content: bytes) -> None:
    seen: list[Any] = []
    Fetcher(tmp_path, lambda *args: seen.append(args), part_bytes=PART).fetch([Remote(content).file])

    assert seen[-1][:2] == (10_500, 10_500)
    assert [entry[0] for entry in seen] == sorted(entry[0] for entry in seen)


def test_the_bandwidth_is_bounded_over_all_threads() -> None:
    now = 100.0
    waits: list[float] = []
    bandwidth = Bandwidth(1000, clock=lambda: now, sleep=waits.append)
    for _ in range(8):
        bandwidth.spend(500)

    # 4,000 bytes at 1,000 a second: the last one waits until second 4, less the burst.
    assert waits[-1] == pytest.approx(4.0, abs=0.3)


def test_a_killed_fetch_goes_on_where_it_was(tmp_path: Path, content: bytes) -> None:
    pid = os.fork()
    if pid == 0:
        remote = Remote(content)
        remote.before = lambda start, end: os.kill(os.getpid(), 9) if start >= 7000 else None
        fetch(tmp_path, remote, threads=1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 9

    second = Remote(content, sha256=digest(content))
    first_identity = Remote(content)
    assert fetch(tmp_path, first_identity) == {"model.safetensors": digest(content)}
    assert first_identity.bytes_read == 3500
    assert second.read == []


def test_an_interruption_is_not_an_error_of_the_file(tmp_path: Path, content: bytes) -> None:
    remote = Remote(content)
    failing = iter([True, True, True])

    def flaky(start: int, end: int) -> None:
        if next(failing, False):
            raise FetchInterrupted("503")

    remote.before = flaky
    assert fetch(tmp_path, remote, threads=1) == {"model.safetensors": digest(content)}
