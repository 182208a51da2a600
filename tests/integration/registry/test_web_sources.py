"""Sources over HTTP: allowed hosts, redirects, archives, the hub; each over a real server on loopback."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import socket
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmserve.errors import InvalidRequest, MmserveError, NotFound, Unavailable
from registry.sources import Wanted, source_for
from registry.sources.hosts import check_address, check_url
from tests.checkpoints import write_checkpoint
from tests.integration.registry.web_server import Site, web_server

GGUF = b"GGUF" + os.urandom(200_000)


def quiet(*args: Any) -> None:
    pass


@pytest.fixture
def site(settings: Any) -> Iterator[Site]:
    with web_server() as found:
        settings.SOURCE_HOSTS = [found.url]
        settings.FETCH_BYTES_PER_S = 0
        yield found


def fetch(uri: str, into: Path, **wanted: Any) -> dict[str, bytes]:
    source_for(uri).fetch(into, quiet, Wanted(**wanted))
    return {
        file.relative_to(into).as_posix(): file.read_bytes()
        for file in sorted(into.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }


@pytest.mark.parametrize("ranges", [True, False])
def test_a_gguf_file_comes_whole_and_has_its_digest(site: Site, tmp_path: Path, ranges: bool) -> None:
    site.files["/m.gguf"], site.ranges = GGUF, ranges
    digest = hashlib.sha256(GGUF).hexdigest()

    assert fetch(f"{site.url}/m.gguf#sha256={digest}", tmp_path / "a") == {"m.gguf": GGUF}
    with pytest.raises(InvalidRequest, match="m.gguf has the SHA-256"):
        fetch(f"{site.url}/m.gguf#sha256={'0' * 64}", tmp_path / "b")


def test_a_redirect_is_followed_to_an_allowed_host_only(site: Site, tmp_path: Path, settings: Any) -> None:
    with web_server() as elsewhere:
        elsewhere.files["/real.gguf"] = GGUF
        site.redirects["/m.gguf"] = f"{elsewhere.url}/real.gguf"

        with pytest.raises(InvalidRequest, match="is not allowed; MMSERVE_SOURCE_HOSTS"):
            fetch(f"{site.url}/m.gguf", tmp_path / "a")
        assert elsewhere.seen == []

        settings.SOURCE_HOSTS = [site.url, elsewhere.url]
        assert fetch(f"{site.url}/m.gguf", tmp_path / "b") == {"m.gguf": GGUF}


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "http://[fd00:ec2::254]/",
        "ftp://127.0.0.1/x",
    ],
)
def test_a_redirect_to_a_metadata_service_is_refused(site: Site, tmp_path: Path, target: str) -> None:
    site.redirects["/m.gguf"] = target

    with pytest.raises(InvalidRequest, match="source_uri"):
        fetch(f"{site.url}/m.gguf", tmp_path / "a")


def test_redirects_in_a_circle_end(site: Site, tmp_path: Path) -> None:
    site.redirects["/m.gguf"] = f"{site.url}/m.gguf"

    with pytest.raises(InvalidRequest, match="more than 5 redirects"):
        fetch(f"{site.url}/m.gguf", tmp_path / "a")


def test_what_is_not_there_or_down_says_so(site: Site, tmp_path: Path, settings: Any) -> None:
    with pytest.raises(NotFound, match="127.0.0.1 has no such file"):
        fetch(f"{site.url}/none.gguf", tmp_path / "a")
    settings.SOURCE_HOSTS = ["http://127.0.0.1:9"]
    with pytest.raises(Unavailable, match="does not answer"):
        fetch("http://127.0.0.1:9/m.gguf", tmp_path / "b")


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org/m.gguf",
        "http://127.0.0.1:1/m.gguf",
        "https://user:secret@127.0.0.1/m.gguf",
        "{site}/m.bin",
        "{site}/",
        "{site}/m.gguf#sha256=abc",
        "{site}/m.gguf#md5=abc",
    ],
)
def test_a_url_that_cannot_be_is_refused(site: Site, uri: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        source_for(uri.replace("{site}", site.url))

    assert refused.value.param == "source_uri"
    assert "secret" not in refused.value.message


def test_a_name_that_resolves_to_a_forbidden_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(address: str) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [(2, 1, 6, "", (address, 443))])

    resolve("169.254.169.254")
    with pytest.raises(InvalidRequest, match="never asked"):
        check_url("https://models.example.org/x", ["models.example.org"], "S")
    resolve("10.0.0.7")
    check_url("https://models.example.org/x", ["models.example.org"], "S")
    with pytest.raises(InvalidRequest, match="a private address"):
        check_url("https://models.example.org/x", ["*.example.org"], "S")
    with pytest.raises(InvalidRequest, match="not allowed"):
        check_url("https://example.org.evil.net/x", ["*.example.org", "example.org"], "S")


@pytest.mark.parametrize(
    "address",
    [
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "fe80::1",
        "fe80::1%eth0",
        "0.0.0.0",
        "224.0.0.1",
        "100.100.100.200",
    ],
)
def test_no_spelling_of_a_forbidden_address_passes(address: str) -> None:
    with pytest.raises(InvalidRequest):
        check_address(address, "host", public_only=False)


@pytest.mark.parametrize(
    "host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "[::ffff:a9fe:a9fe]"]
)
def test_an_address_in_disguise_is_refused_even_if_it_is_listed(host: str) -> None:
    with pytest.raises(InvalidRequest, match="never asked"):
        check_url(f"http://{host}/m.gguf", [f"http://{host}"], "S")


def test_a_file_that_changes_between_two_ranges_is_noticed_without_a_strong_etag(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.fetch.fetcher.PART_BYTES", 50_000)
    site.files["/m.gguf"], site.weak = GGUF, True

    def change(path: str) -> None:
        if len(site.seen) >= 4:
            site.files["/m.gguf"] = GGUF[:-1] + b"?"

    site.before = change

    with pytest.raises(InvalidRequest, match="m.gguf was changed while it was fetched"):
        fetch(f"{site.url}/m.gguf", tmp_path / "a")


def packed(kind: str, members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return out.getvalue()
    with tarfile.open(fileobj=out, mode="w:gz" if kind == ".tar.gz" else "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return out.getvalue()


@pytest.fixture
def members(tmp_path: Path) -> dict[str, bytes]:
    folder = write_checkpoint(tmp_path / "checkpoint")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
def test_an_archive_is_unpacked_without_the_folder_around_it(
    site: Site, tmp_path: Path, members: dict[str, bytes], kind: str
) -> None:
    inside = {f"model-v1/{name}": content for name, content in members.items()}
    site.files[f"/m{kind}"] = packed(kind, {**inside, "model-v1/run.py": b"evil()"})

    assert fetch(f"{site.url}/m{kind}", tmp_path / "a") == members


@pytest.mark.parametrize("kind", [".tar", ".zip"])
@pytest.mark.parametrize(
    "name", ["../../escape.json", "/etc/escape.json", "a/../../escape.json", "CONFIG.json"]
)
def test_a_member_that_leaves_its_root_or_plays_with_case_is_refused(
    site: Site, tmp_path: Path, members: dict[str, bytes], kind: str, name: str
) -> None:
    site.files[f"/m{kind}"] = packed(kind, {**members, name: b"{}"})

    with pytest.raises(InvalidRequest, match="leaves the version|differ only in case"):
        fetch(f"{site.url}/m{kind}", tmp_path / "a")
    assert not list(tmp_path.rglob("escape.json"))


def test_links_and_devices_in_an_archive_are_left_out(
    site: Site, tmp_path: Path, members: dict[str, bytes]
) -> None:
    site.files["/m.tar"] = packed(".tar", members, {"vocab.json": "/etc/passwd", "folder": "/etc"})

    assert fetch(f"{site.url}/m.tar", tmp_path / "a") == members


@pytest.mark.parametrize("kind", [".tar.gz", ".zip"])
def test_a_bomb_is_refused_before_it_is_unpacked(
    site: Site, tmp_path: Path, members: dict[str, bytes], kind: str
) -> None:
    site.files[f"/m{kind}"] = packed(kind, {**members, "zeros.json": bytes(60 * 2**20)})

    with pytest.raises(InvalidRequest, match="more than 20 times"):
        fetch(f"{site.url}/m{kind}", tmp_path / "a")
    assert sum(file.stat().st_size for file in (tmp_path / "a").rglob("*")) < 2**20


def huge_header() -> bytes:
    """A tar whose extended header says that it has 200 MiB, and has them, in 200 KiB of gzip."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 200 * 2**20
    return gzip.compress(entry.tobuf() + bytes(entry.size), 9)


def huge_directory() -> bytes:
    """A zip whose directory alone is larger than any list of files that is taken."""
    names = [f"{number}-{'x' * 60_000}.json" for number in range(200)]
    return packed(".zip", dict.fromkeys(names, b""))


@pytest.mark.parametrize(("kind", "make"), [(".tar.gz", huge_header), (".zip", huge_directory)])
def test_a_header_that_claims_much_memory_gets_none(
    site: Site, tmp_path: Path, kind: str, make: Callable[[], bytes]
) -> None:
    site.files[f"/m{kind}"] = make()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="a header in it is larger than|more than 20 times"):
            fetch(f"{site.url}/m{kind}", tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()


def test_an_archive_with_too_many_members_is_refused(
    site: Site, tmp_path: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.sources.archive.MAX_LISTED", 10)
    site.files["/m.tar"] = packed(".tar", {**members, **{f"{n}.json": b"{}" for n in range(20)}})

    with pytest.raises(InvalidRequest, match="more than 10 files"):
        fetch(f"{site.url}/m.tar", tmp_path / "a")


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
def test_a_damaged_archive_is_refused(
    site: Site, tmp_path: Path, members: dict[str, bytes], kind: str
) -> None:
    content = packed(kind, members)
    for cut in (10, min(600, len(content) // 2)):
        site.files[f"/m{kind}"] = content[:cut]
        with pytest.raises(InvalidRequest):
            fetch(f"{site.url}/m{kind}", tmp_path / str(cut))


def test_a_pickle_is_refused_unless_the_operator_allows_it(
    site: Site, tmp_path: Path, members: dict[str, bytes]
) -> None:
    pickled = {"config.json": members["config.json"], "pytorch_model.bin": b"\x80\x04."}
    site.files["/m.tar"] = packed(".tar", {**pickled, "modeling.py": b"pass"})

    with pytest.raises(InvalidRequest, match="pytorch_model.bin is a pickle"):
        fetch(f"{site.url}/m.tar", tmp_path / "a")
    assert fetch(f"{site.url}/m.tar", tmp_path / "b", allow_pickle=True) == pickled
    both = fetch(f"{site.url}/m.tar", tmp_path / "c", allow_pickle=True, trust_remote_code=True)
    assert "modeling.py" in both


@pytest.fixture
def hub(site: Site, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Site:
    """As much of the hub as a fetch needs: the listing of a commit, and files that it redirects to elsewhere."""
    commit = "c" * 40
    siblings = []
    for name, content in members.items():
        site.files[f"/acme/echo/resolve/{commit}/{name}"] = content
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "b" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    listing = {
        "id": "acme/echo",
        "modelId": "acme/echo",
        "sha": commit,
        "siblings": siblings,
        "private": False,
    }
    for revision in ("main", "v1"):
        site.files[f"/api/models/acme/echo/revision/{revision}"] = json.dumps(listing).encode()
    site.files["/api/models/acme/echo"] = json.dumps(listing).encode()
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return site


def test_a_repository_comes_from_the_hub_at_one_commit(
    hub: Site, tmp_path: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    assert fetch("hf://acme/echo@v1", tmp_path / "a") == members
    files = [headers for path, headers in hub.seen if "/resolve/" in path]
    assert all(headers.get("Authorization") == "Bearer hf_secret" for headers in files)


def test_a_token_does_not_go_where_the_hub_redirects(
    hub: Site, tmp_path: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("registry.sources.huggingface.HUB_HOSTS", ("http://127.0.0.1",))
    with web_server() as cdn:
        monkeypatch.setattr("registry.sources.huggingface.HUB_HOSTS", (cdn.url,))
        path = next(path for path in hub.files if path.endswith("model-1.safetensors"))
        cdn.files["/blob"] = hub.files[path]
        hub.redirects[path] = f"{cdn.url}/blob"

        assert fetch("hf://acme/echo", tmp_path / "a") == members
        assert cdn.seen
        assert all("Authorization" not in headers for _, headers in cdn.seen)


def test_a_file_that_is_not_what_the_hub_lists_is_refused(hub: Site, tmp_path: Path) -> None:
    path = next(path for path in hub.files if path.endswith("model-1.safetensors"))
    hub.files[path] = hub.files[path][:-1] + b"?"

    with pytest.raises(InvalidRequest, match="model-1.safetensors has the SHA-256"):
        fetch("hf://acme/echo", tmp_path / "a")


def test_a_hub_without_a_network_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(Unavailable, match="cannot be reached"):
        fetch("hf://acme/echo", tmp_path / "a")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
        fetch("hf://acme/echo", tmp_path / "b")


def test_a_repository_that_the_hub_does_not_know(hub: Site, tmp_path: Path) -> None:
    with pytest.raises(MmserveError, match="acme/none@main"):
        fetch("hf://acme/none", tmp_path / "a")


@pytest.mark.parametrize(
    "uri", ["hf://acme", "hf://acme/a/b", "hf://acme/../x", "hf://acme/x@", "hf://a b/c"]
)
def test_a_repository_that_cannot_be(uri: str) -> None:
    with pytest.raises(InvalidRequest, match="hf://org/name@revision"):
        source_for(uri)
