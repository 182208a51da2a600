"""The registry as YAML: out, in, the difference, and documents that are wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.core.management import call_command
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mmserve.errors import Conflict, InvalidRequest
from registry import actions, jobs
from registry.models import Event, Model, ModelVersion, VersionFile
from registry.portable import apply, plan, read_document, write_document
from registry.portable.document import Document, PortableFile, PortableModel, PortableVersion
from registry.report import quiet
from registry.sources import Wanted, source_for

Versions = Callable[..., ModelVersion]


@pytest.fixture(autouse=True)
def _no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions.versions, "_enqueue", lambda *args: None)


@pytest.fixture
def exported(model: Model, version_of: Versions, capsys: Any) -> str:
    one = version_of("1")
    VersionFile.objects.create(version=one, path="config.json", size_bytes=2, sha256="0" * 64)
    actions.update_model(model, actor="tests", team="search", tags=["eu"], description="Änderung: ja")
    actions.update_version(one, actor="tests", price_input="0.15")
    actions.promote(one, actor="tests")
    actions.promote(one, actor="tests", alias="candidate")
    call_command("registry_export")
    return capsys.readouterr().out


def with_file(path: str = "a", size: int = 1, sha256: str = "0" * 64) -> str:
    """A document with one line of a manifest."""
    file = {"path": path, "size_bytes": size, "sha256": sha256}
    version = {"version": "1", "source_uri": "file:///x", "files": [file]}
    return json.dumps({"mmserve": 1, "models": [{"name": "a", "versions": [version]}]})


def wipe() -> None:
    for model in Model.objects.all():
        actions.delete_model(model, actor="tests")


def words(text: str, **options: Any) -> list[tuple[str, str, str]]:
    return [(change.what, change.subject, change.waits) for change in plan(read_document(text), **options)]


def test_what_is_exported_says_nothing_new(exported: str) -> None:
    assert words(exported) == []
    assert "price_input: '0.15'" in exported
    assert "Änderung: ja" in exported


def test_an_empty_registry_becomes_what_the_document_says(exported: str, version_of: Versions) -> None:
    wipe()

    apply(read_document(exported), actor="git", reason="deploy")

    version = ModelVersion.objects.get()
    assert (version.served_id, version.state, str(version.price_input)) == (
        "acme/echo@1",
        "fetching",
        "0.150000",
    )
    # What is fetched must have the digests of the document.
    assert list(version.files.values_list("path", "sha256")) == [("config.json", "0" * 64)]
    assert Model.objects.get().team == "search"
    waiting = "acme/echo@1 is not ready yet"
    assert words(exported) == [
        ("promote", "acme/echo@production", waiting),
        ("promote", "acme/echo@candidate", waiting),
    ]
    assert Event.objects.filter(actor="git", reason="deploy").count() == 3

    actions.versions.finish_import(version, actor="tests")
    apply(read_document(exported), actor="git")
    assert words(exported) == []
    assert Model.objects.get().aliases.get(is_default=True).name == "production"


def test_fallbacks_are_named_once_all_models_are_there(
    model: Model, version_of: Versions, capsys: Any
) -> None:
    version_of("1")
    actions.register_model("zeta", actor="tests")
    chain = {"fallbacks": ["zeta", "acme/echo@1"], "first_token_ms": 900, "no_fallback_on": ["breaker"]}
    actions.update_model(model, actor="tests", **chain)
    call_command("registry_export")
    exported = capsys.readouterr().out
    assert words(exported) == []
    wipe()

    assert ("change fallbacks", "acme/echo", "") in words(exported)
    apply(read_document(exported), actor="git")

    model = Model.objects.get(name="acme/echo")
    assert {name: getattr(model, name) for name in chain} == chain
    assert [one for one in words(exported) if one[0] == "change fallbacks"] == []
    apply(read_document(exported.replace("  - zeta\n", "")), actor="git")
    assert Model.objects.get(name="acme/echo").fallbacks == ["acme/echo@1"]


def test_a_fallback_that_means_nothing_any_more_is_not_exported(
    model: Model, version_of: Versions, capsys: Any
) -> None:
    old = version_of("old")
    version_of("1")
    other = actions.register_model("zeta", actor="tests")
    actions.update_model(other, actor="tests", fallbacks=["acme/echo@old", "acme/echo@1"])
    actions.archive_version(old, actor="tests")
    call_command("registry_export")
    exported = capsys.readouterr().out
    wipe()

    apply(read_document(exported), actor="git")
    assert Model.objects.get(name="zeta").fallbacks == ["acme/echo@1"]


def test_a_fallback_waits_for_what_it_names(exported: str) -> None:
    wipe()
    other = "models:\n- name: other\n  fallbacks: [acme/echo@candidate]"
    text = exported.replace("models:", other, 1)

    apply(read_document(text), actor="git")

    waiting = ("change fallbacks", "other", "acme/echo@1 is not ready yet")
    assert waiting in words(text)
    actions.versions.finish_import(ModelVersion.objects.get(), actor="tests")
    apply(read_document(text), actor="git")
    # The alias is there from now on.
    apply(read_document(text), actor="git")
    assert words(text) == []


@pytest.mark.parametrize(
    ("fallbacks", "message"),
    [
        ("[gone]", "model other: fallbacks: There is no model 'gone'"),
        ("[other]", "cannot stand in for itself"),
        ("[acme/echo, acme/echo]", "stands twice"),
    ],
)
def test_fallbacks_that_are_wrong_say_where(exported: str, fallbacks: str, message: str) -> None:
    text = exported.replace("models:", f"models:\n- name: other\n  fallbacks: {fallbacks}", 1)

    with pytest.raises(InvalidRequest, match=message) as refused:
        plan(read_document(text))
    assert refused.value.param == "models[0].fallbacks"


def test_a_dry_run_shows_the_difference_and_changes_nothing(
    exported: str, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(exported.replace("team: search", "team: ads").replace("'0.15'", "'0.2'"))
    before = Event.objects.count()

    call_command("registry_apply", str(file), "--dry-run", "--json")

    rows = json.loads(capsys.readouterr().out)
    assert [(row["what"], row["fields"]) for row in rows] == [
        ("change model", {"team": ["search", "ads"]}),
        ("change version", {"price_input": ["0.15", "0.2"]}),
    ]
    assert Event.objects.count() == before

    call_command("registry_apply", str(file), "--json")
    assert Model.objects.get().team == "ads"


def test_it_is_all_or_nothing(exported: str, version_of: Versions) -> None:
    version_of("2")
    text = exported.replace("team: search", "team: ads").replace("candidate: '1'", "'2': '1'")

    with pytest.raises(Conflict, match="is a version already"):
        apply(read_document(text), actor="git")
    assert Model.objects.get().team == "search"


def test_what_is_not_named_stays_unless_it_is_pruned(exported: str, version_of: Versions) -> None:
    version_of("2")
    actions.register_model("other", actor="tests")

    assert words(exported) == []
    assert words(exported, prune=True) == [
        ("delete model", "other", ""),
        ("delete version", "acme/echo@2", ""),
    ]
    apply(read_document(exported), actor="git", prune=True)
    assert list(Model.objects.values_list("name", flat=True)) == ["acme/echo"]
    assert ModelVersion.objects.count() == 1


def test_a_published_version_is_not_changed_by_a_document(exported: str) -> None:
    with pytest.raises(Conflict, match="comes from file:"):
        plan(read_document(exported.replace("source_uri: file:", "source_uri: s3:")))
    with pytest.raises(Conflict, match="engine_options cannot change"):
        plan(
            read_document(
                exported.replace("    source_uri:", "    engine_options: {max_streams: 2}\n    source_uri:")
            )
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected `object`, got `null`"),
        ("[", "not YAML"),
        ("mmserve: 2\nmodels: []", "a format that this version does not know"),
        ("mmserve: 1\nmodels: [{name: a, colour: red}]", "colour"),
        ("mmserve: 1\nmodels: [{name: a, versions: [{version: 1, source_uri: x}]}]", "put it in quotes"),
        ("mmserve: 1\nmodels: [{name: a}, {name: a}]", "stands twice"),
        ("mmserve: 1\nmodels: [{name: a, name: b}]", "stands twice"),
        ("{[1]: 2}", "a key that is no text"),
        ("a: &a [x]\nb: [*a, *a]", "aliases"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
        ("[" * 5000, "nested too deeply|not YAML"),
        (with_file(path="../x"), "leaves the version's folder"),
        (with_file(path="a//x"), "no plain path"),
        (with_file(size=-1), "size_bytes"),
        (with_file(sha256="0" * 63), "sha256"),
    ],
)
def test_a_document_that_is_wrong_says_where(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_document(text)


TEXT = st.text(max_size=8) | st.sampled_from(
    ["1", "null", "~", "yes", "0x1f", "a: b", "- x", "a\x85b", "\U0001f600", " a\n"]
)
FILES = st.builds(
    PortableFile,
    path=st.from_regex(r"[a-z]{1,8}\.json", fullmatch=True),
    size_bytes=st.integers(0, 2**53),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)
VERSIONS = st.builds(
    PortableVersion,
    version=TEXT,
    source_uri=TEXT,
    description=TEXT,
    tags=st.lists(TEXT, max_size=3),
    engine_options=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT, max_size=3),
    price_input=st.none() | TEXT,
    archived=st.booleans(),
    files=st.lists(FILES, max_size=3, unique_by=lambda file: file.path),
)
MODELS = st.builds(
    PortableModel,
    name=TEXT,
    description=TEXT,
    links=st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
    versions=st.lists(VERSIONS, max_size=3, unique_by=lambda version: version.version),
    aliases=st.dictionaries(TEXT, TEXT, max_size=3),
    default_alias=st.none() | TEXT,
)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(models=st.lists(MODELS, max_size=3, unique_by=lambda model: model.name))
def test_whatever_is_written_is_read_as_it_was(models: list[PortableModel]) -> None:
    document = Document(mmserve=1, models=models)

    assert read_document(write_document(document)) == document
    assert read_document(json.dumps(msgspec.to_builtins(document))) == document


def test_a_source_that_is_converted_has_not_the_manifests_files_yet(checkpoint: Path) -> None:
    for shard in checkpoint.glob("*.safetensors"):
        shard.unlink()
    (checkpoint / "m.gguf").write_bytes(b"GGUF")
    wanted = Wanted(sha256={"model.safetensors": "0" * 64})

    assert "m.gguf" in source_for(checkpoint.as_uri()).fetch(checkpoint.parent / "into", quiet, wanted)


def test_what_comes_out_of_an_archive_must_be_what_the_document_said(
    checkpoint: Path, version_of: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = version_of("9", "registered")
    VersionFile.objects.create(version=version, path="model-1.safetensors", size_bytes=1, sha256="0" * 64)
    actions.import_version(version, actor="tests")

    def unpacked(source: Any, into: Path, report: Any, wanted: Wanted) -> dict[str, str]:
        shutil.copytree(source.path, into, dirs_exist_ok=True)
        return {}

    monkeypatch.setattr("registry.sources.local.LocalSource.fetch", unpacked)
    with pytest.raises(InvalidRequest, match="model-1.safetensors has the SHA-256 .*, not 0000"):
        jobs.import_version(version.pk)


def test_a_file_that_is_not_there_and_bytes_that_are_no_text(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("none", "bytes"):
        with pytest.raises(SystemExit) as ended:
            call_command("registry_apply", str(tmp_path / name))
        assert ended.value.code == 5
        assert "cannot be read" in capsys.readouterr().err
