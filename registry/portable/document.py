"""The document: what an operator decides about models. No key, no state of a machine, no facts of files."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import yaml

from mmserve.errors import InvalidRequest, ModelNotFound
from registry.actions.models import FIELDS as MODEL_FIELDS
from registry.actions.versions import PRICES as PRICE_FIELDS
from registry.lookup import find_candidate
from registry.manifest import check_paths
from registry.models import Model, ModelVersion, VersionState
from registry.portable.sections import sections

FORMAT = 1
MAX_BYTES = 16 * 2**20
# Sources whose files are converted here: another machine may convert them to other bytes.
CONVERTED = (".gguf",)

UNQUOTED = re.compile(r"Expected `str( \| null)?`, got `(int|float)`")


class PortableFile(msgspec.Struct, forbid_unknown_fields=True):
    """One line of a manifest: what is fetched must have this digest."""

    path: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class PortableVersion(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One version."""

    version: str
    source_uri: str
    description: str = ""
    capabilities: list[str] = []
    tags: list[str] = []
    engine_options: dict[str, Any] = {}
    price_input: str | None = None
    price_cached_input: str | None = None
    price_output: str | None = None
    price_device_hour: str | None = None
    archived: bool = False
    files: list[PortableFile] = []


class PortableModel(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One model with its versions, and what its aliases mean."""

    name: str
    display_name: str = ""
    description: str = ""
    owner: str = "mmserve"
    team: str = ""
    licence: str = ""
    tags: list[str] = []
    links: list[dict[str, str]] = []
    allow_pickle: bool = False
    trust_remote_code: bool = False
    fallbacks: list[str] = []
    first_token_ms: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    no_fallback_on: list[str] = []
    versions: list[PortableVersion] = []
    aliases: dict[str, str] = {}
    default_alias: str | None = None


class Document(msgspec.Struct, omit_defaults=True):
    """All of it. ``sections`` are the parts of other apps; one that is not there says nothing."""

    mmserve: int
    models: list[PortableModel]
    sections: dict[str, list[Any]] = {}


VERSION_FIELDS = ("description", "capabilities", "tags", "engine_options", *PRICE_FIELDS)


def portable(models: Iterable[Model], *, whole: bool = True) -> Document:
    """Rows as a document, all sections with it if it is the ``whole``.

    ``models`` come with their versions (and files) and aliases prefetched.
    """
    found = {section.name: section.export() for section in sections()} if whole else {}
    return Document(mmserve=FORMAT, models=[_model(model) for model in models], sections=found)


def as_builtins(document: Document) -> dict[str, Any]:
    """As YAML and JSON have it: each section is a key of its own."""
    found = msgspec.to_builtins(document)
    return {"mmserve": found["mmserve"], "models": found["models"], **found.get("sections", {})}


def write_document(document: Document) -> str:
    """As YAML, in an order that diffs well."""
    return yaml.dump(
        as_builtins(document), Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=120
    )


def read_document(text: str) -> Document:
    """From YAML, or JSON; InvalidRequest says where it is wrong."""
    if len(text) > MAX_BYTES:
        raise InvalidRequest(f"the document is larger than {MAX_BYTES} bytes")
    try:
        read = msgspec.convert(_parsed(text), _wire())
    except yaml.YAMLError as error:
        raise InvalidRequest(f"not YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise InvalidRequest("the document is nested too deeply") from error
    except msgspec.ValidationError as error:
        hint = " (put it in quotes)" if UNQUOTED.search(str(error)) else ""
        raise InvalidRequest(
            f"{error}{hint}", param=str(error).rpartition("`$.")[2].rstrip("`") or None
        ) from error
    given = {section.name: getattr(read, section.name) for section in sections()}
    document = Document(
        mmserve=read.mmserve,
        models=read.models,
        sections={name: rows for name, rows in given.items() if rows is not None},
    )
    if document.mmserve != FORMAT:
        raise InvalidRequest(
            f"mmserve: {document.mmserve} is a format that this version does not know", param="mmserve"
        )
    _refuse_twins("model", (model.name for model in document.models))
    for model in document.models:
        _refuse_twins(f"version of {model.name}", (version.version for version in model.versions))
        for version in model.versions:
            check_paths([file.path for file in version.files])
    for section in sections():
        _refuse_twins(section.noun, (row.name for row in document.sections.get(section.name, ())))
    return document


def _wire() -> Any:
    """The type of what is read: the sections' keys stand beside ``models``."""
    keys: list[Any] = [("mmserve", int), ("models", list[PortableModel])]
    keys += [(section.name, list[section.row] | None, None) for section in sections()]  # type: ignore[name-defined]
    return msgspec.defstruct("Document", keys, forbid_unknown_fields=True)


def _parsed(text: str) -> Any:
    if text.lstrip().startswith("{"):
        # JSON is nearly YAML: pairs of \u escapes and some line ends mean another thing there.
        with suppress(json.JSONDecodeError):
            return json.loads(text, object_pairs_hook=_mapping)
    # A few lines with aliases can stand for gigabytes.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise InvalidRequest("YAML aliases (*name) are not taken: write it out")
    return yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twins("key", (name for name, _ in pairs))
    return dict(pairs)


class PlainDumper(yaml.SafeDumper):
    """Writes no aliases, and so that every text is read as it was."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML takes a NEL for the end of a line, and reads it as another one.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


PlainDumper.add_representer(str, _text)


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: PyYAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def version_values(version: ModelVersion) -> dict[str, Any]:
    """A version's fields as the document has them."""
    found = {name: getattr(version, name) for name in VERSION_FIELDS}
    return {**found, **{name: price_text(found[name]) for name in PRICE_FIELDS}}


def price_text(price: Any) -> str | None:
    """``0.150000`` as ``0.15``."""
    if price is None:
        return None
    text = str(price)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _model(model: Model) -> PortableModel:
    aliases = list(model.aliases.all())
    return PortableModel(
        name=model.name,
        **{name: getattr(model, name) for name in MODEL_FIELDS if name != "fallbacks"},
        fallbacks=[target for target in model.fallbacks if _means_something(target)],
        versions=[_version(row) for row in sorted(model.versions.all(), key=lambda row: row.pk)],
        aliases={alias.name: alias.version.version for alias in aliases},
        default_alias=next((alias.name for alias in aliases if alias.is_default), None),
    )


def _means_something(target: str) -> bool:
    """A fallback whose version was archived or deleted since would be refused where the document is applied."""
    try:
        find_candidate(target)
    except ModelNotFound:
        return False
    return True


def _version(version: ModelVersion) -> PortableVersion:
    converted = version.source_uri.partition("#")[0].endswith(CONVERTED) or version.source_uri.startswith(
        "pypi://"
    )
    return PortableVersion(
        version=version.version,
        source_uri=version.source_uri,
        **version_values(version),
        archived=version.state == VersionState.ARCHIVED,
        files=[]
        if converted
        else [PortableFile(file.path, file.size_bytes, file.sha256) for file in version.files.all()],
    )


def _refuse_twins(what: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"the {what} {name!r} stands twice in the document", param=name)
        seen.add(name)
