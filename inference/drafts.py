"""Draft models (speculative decoding, Leviathan 2023): which version guesses for a deployment, and which may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.capacity.abilities import DRAFT_MODEL
from inference.capacity.estimate import kv_cost
from inference.models import Deployment
from mmserve.errors import InvalidRequest, ModelNotFound
from registry.lookup import find_version
from registry.models import ModelVersion, VersionState

MAX_ID_CHARS = 320


def named_draft(named: object) -> ModelVersion:
    """The version that an id means; InvalidRequest names the field."""
    if not isinstance(named, str) or not 0 < len(named) <= MAX_ID_CHARS:
        raise InvalidRequest("draft: the id of a version, like name@version", param="draft")
    try:
        return find_version(named)
    except ModelNotFound as error:
        raise InvalidRequest(f"draft: {error.message}", param="draft") from error


def check_pair(speculation: str, draft: object) -> None:
    """A draft and the method that it is for come together."""
    if speculation == DRAFT_MODEL and draft is None:
        raise InvalidRequest(
            f"draft: speculation {DRAFT_MODEL} needs a version that guesses: a small one with the same vocabulary",
            param="draft",
        )
    if speculation != DRAFT_MODEL and draft is not None:
        raise InvalidRequest(
            f"draft: speculation is {speculation or 'off'}; empty the draft, or set speculation to {DRAFT_MODEL}",
            param="draft",
        )


def check_draft(deployment: Deployment) -> None:
    """Refuse a draft that could not guess for this deployment; vLLM's own classes look at the rest."""
    draft, version = deployment.draft, deployment.version
    check_pair(deployment.speculation, draft)
    if draft is None:
        return
    if draft.state != VersionState.READY:
        raise InvalidRequest(
            f"draft: {draft.served_id} is {draft.state}; only a ready version can guess", param="draft"
        )
    leaving = draft.deletion_asked_by or draft.model.deletion_asked_by
    if leaving:
        raise InvalidRequest(f"draft: {draft.served_id} is being deleted, as {leaving} asked", param="draft")
    if version.model.trust_remote_code and not draft.model.trust_remote_code:
        raise InvalidRequest(
            f"draft: {version.served_id} runs code of its files and {draft.model.name} must not; both models or "
            "none may be trusted with it",
            param="draft",
        )
    check_plannable(version, draft)


def check_plannable(version: ModelVersion, draft: ModelVersion) -> None:
    """What a draft and its target must have in common, by their facts."""
    check_vocabulary(version, draft)
    kinds = _kinds(version.facts) | _kinds(draft.facts)
    if len(kinds) > 1:
        raise InvalidRequest(
            f"draft: all layers of both models must be of one kind, and here are {', '.join(sorted(kinds))}",
            param="draft",
        )


def _kinds(facts: Mapping[str, Any]) -> set[str]:
    """What its layers keep of a stream.

    vLLM takes a draft whose layers are all in one group of the cache (``validate_same_kv_cache_group``), and splits
    layers of several kinds, whichever model's they are, into several groups.
    """
    cost = kv_cost(facts)
    if cost is None:
        return set()
    found = {
        "latent attention" if facts.get("kv_lora_rank") else "full attention": cost.full_bytes,
        f"a window of {cost.window} tokens": cost.window_bytes,
        "a recurrent state": cost.state_bytes,
    }
    return {kind for kind, size in found.items() if size}


def check_vocabulary(version: ModelVersion, draft: ModelVersion) -> None:
    """What a draft guesses must be tokens of its target (vLLM ``verify_equal_vocab_size_if_draft_model``)."""
    own, drafts = version.facts.get("vocabulary"), draft.facts.get("vocabulary")
    if own and drafts and own != drafts:
        raise InvalidRequest(
            f"draft: {draft.served_id} has a vocabulary of {drafts:,} tokens, {version.served_id} one of {own:,}; "
            "a draft needs the same vocabulary",
            param="draft",
        )


def drafts_for(version: ModelVersion) -> list[str]:
    """The names of the deployments that it guesses for, but for its own, which goes along with it."""
    rows = Deployment.objects.filter(draft=version).exclude(version=version)
    return list(rows.order_by("name").values_list("name", flat=True))


def check_proposed(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """A version's engine options without its draft, which need not be registered yet."""
    draft = options.get("draft")
    if draft is not None and not (isinstance(draft, str) and 0 < len(draft) <= MAX_ID_CHARS):
        raise InvalidRequest("draft: the id of a version, like name@version", param="draft")
    check_pair(options.get("speculation", ""), draft)
    return {name: value for name, value in options.items() if name != "draft"}


def proposed(version: ModelVersion, **fields: Any) -> Deployment:
    """A deployment, not saved, as the version's engine options say; InvalidRequest for a draft that is nowhere."""
    options = dict(version.engine_options)
    if options.get("draft") is not None:
        options["draft"] = named_draft(options["draft"])
    return Deployment(version=version, **options, **fields)


def proposed_or_plain(version: ModelVersion) -> Deployment:
    """The same for those who only look at it: without a draft that is nowhere."""
    try:
        return proposed(version)
    except InvalidRequest:
        return Deployment(version=version, **{**version.engine_options, "draft": None})
