"""A store that is a bucket: objects below ``<prefix>/<path>/``, uploaded and listed through Django's storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.files import File
from django.core.files.storage import Storage

from mmserve.errors import Unavailable
from registry.fetch import RemoteFile
from registry.manifest import ManifestEntry
from registry.report import Report, quiet
from registry.s3 import client_for, remote_file, said_in_words


def publish(storage: Storage, work: Path, path: str, report: Report) -> None:
    """Upload every file; what is there under another name is not touched. On a failure nothing is left."""
    files = sorted(file for file in work.rglob("*") if file.is_file() and not file.name.startswith("."))
    try:
        upload(storage, work, path, [file.relative_to(work).as_posix() for file in files], report)
    except BaseException:
        remove(storage, path)
        raise


def upload(storage: Storage, work: Path, path: str, names: list[str], report: Report = quiet) -> None:
    """Put files below a path; each object is the new one or the old one, never a mixture."""
    sizes = {name: (work / name).stat().st_size for name in names}
    done, bucket = 0, _bucket(storage)
    for name, size in sizes.items():
        key = f"{path}/{name}"
        with said_in_words(bucket, key), (work / name).open("rb") as reader:
            storage.save(key, File(reader))
            stored = storage.size(key)
        if stored != size:
            raise Unavailable(f"{key} has {stored} bytes in the store, not {size}.")
        done += stored
        report(done, sum(sizes.values()))


def remove(storage: Storage, path: str) -> None:
    """Delete what is below a path."""
    with said_in_words(_bucket(storage)):
        found: Any = storage
        for entry in found.bucket.objects.filter(Prefix=_key(storage, path) + "/"):
            entry.delete()


def remote_files(storage: Storage, path: str, manifest: list[ManifestEntry]) -> list[RemoteFile]:
    """The objects of a published version, each with the digest that it must have."""
    options: Any = storage
    client = client_for(options.endpoint_url or None)
    return [
        remote_file(client, _bucket(storage), _key(storage, f"{path}/{entry.path}"), entry.path, entry.sha256)
        for entry in manifest
    ]


def _bucket(storage: Any) -> str:
    return storage.bucket_name


def _key(storage: Any, path: str) -> str:
    return f"{storage.location}/{path}".lstrip("/")
