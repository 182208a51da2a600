"""Which of a source's files a version is made of, and which are never taken."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from mmserve.errors import InvalidRequest
from registry.manifest import check_paths
from registry.sources import Wanted

# Weights as data, and what a tokenizer needs. Neither code nor pickles.
SUFFIXES = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".md"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
CODE = frozenset({".py"})
WEIGHTS = frozenset({".safetensors", ".gguf"})
MAX_FILES = 2_000
# Seen before the choice: a listing that never ends is cut here.
MAX_LISTED = 20_000


def select(paths: Iterable[str], wanted: Wanted) -> list[str]:
    """The paths to take, sorted; InvalidRequest where they make no version or are too many."""
    listed: list[str] = []
    for path in paths:
        listed.append(path)
        if len(listed) > MAX_LISTED:
            raise InvalidRequest(
                f"the source lists more than {MAX_LISTED} files: name the folder of one model",
                param="source_uri",
            )
    # Hidden files and folders are somebody's bookkeeping: .git, .cache.
    visible = [path for path in listed if not _is_hidden(path)]
    taken = SUFFIXES | (CODE if wanted.trust_remote_code else frozenset())
    chosen = [path for path in visible if _suffix(path) in taken]
    if any(_suffix(path) == ".safetensors" for path in chosen):
        # The same weights once more, for other programs.
        chosen = [path for path in chosen if _suffix(path) != ".gguf"]
    if not any(_suffix(path) in WEIGHTS for path in chosen):
        chosen += _pickles(visible, wanted)
    if wanted.sha256 and not any(_suffix(path) == ".gguf" for path in chosen):
        # What the source has got since then is no part of the version.
        chosen = [path for path in chosen if path in wanted.sha256]
    if len(chosen) > MAX_FILES:
        raise InvalidRequest(
            f"the source has {len(chosen)} files, and a version has at most {MAX_FILES}", param="source_uri"
        )
    return check_paths(sorted(chosen))


def _pickles(paths: list[str], wanted: Wanted) -> list[str]:
    found = [path for path in paths if _suffix(path) in PICKLES]
    if not found:
        raise InvalidRequest("the source has neither .safetensors nor .gguf files", param="source_uri")
    if not wanted.allow_pickle:
        raise InvalidRequest(
            f"{found[0]} is a pickle: loading one can run any code in it. Bring safetensors, or set "
            "allow_pickle on the model if you trust where it comes from.",
            param="source_uri",
        )
    return found


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in PurePosixPath(path).parts)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
