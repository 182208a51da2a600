"""The manifest, and the root that no path leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.errors import InvalidRequest
from registry.manifest import ManifestEntry, check_path, check_paths, read_manifest


def test_every_file_is_listed_with_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.json").write_bytes(b"{}")
    (tmp_path / "sub" / "a.txt").write_bytes(b"hello")
    reports: list[tuple[int, int | None]] = []

    found = read_manifest(tmp_path, lambda done, total: reports.append((done, total)))

    assert found == [
        ManifestEntry(path="b.json", size_bytes=2, sha256=hashlib.sha256(b"{}").hexdigest()),
        ManifestEntry(path="sub/a.txt", size_bytes=5, sha256=hashlib.sha256(b"hello").hexdigest()),
    ]
    assert reports[-1] == (7, 7)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "passwords").symlink_to("/etc/passwd")

    with pytest.raises(InvalidRequest, match="passwords is a link"):
        read_manifest(tmp_path, lambda done, total: None)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b", "a\\..\\b"])
def test_a_path_that_leaves_its_root_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="leaves the version's folder"):
        check_path(path)


@pytest.mark.parametrize(
    "path", ["a//b", "./a", "a/./b", "a/", "a\nb", "a\x1b[2J", "a\ud800", "é" * 121, "a/" * 260 + "a"]
)
def test_a_path_that_could_be_taken_for_another_or_hurt_a_terminal_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="no plain path|too long"):
        check_path(path)


@pytest.mark.parametrize(
    "paths",
    [["a.json", "A.json"], ["e\u0301.json", "\xe9.json"], ["a.json", "a.json/b.json"], ["A", "a/b/c"]],
)
def test_two_paths_that_no_folder_can_hold_are_refused(paths: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="differ only in case|is in it"):
        check_paths(paths)


@given(path=st.text(alphabet="ab./\\\0~", max_size=12))
def test_a_path_that_is_accepted_stays_below_its_root(path: str) -> None:
    try:
        accepted = check_path(path)
    except InvalidRequest:
        return
    assert Path("/root", accepted).resolve().is_relative_to("/root")
    assert ".." not in PurePosixPath(accepted).parts
