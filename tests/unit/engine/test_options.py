"""An operator's options as vLLM takes them."""

from __future__ import annotations

import pytest

from inference.engine.options import engine_arguments, without_draft
from inference.protocol import EngineOptions
from mmserve.errors import InvalidRequest

DRAFTED = EngineOptions(speculation="draft_model", speculative_tokens=3, draft_path="/small")
NGRAM = EngineOptions(speculation="ngram", speculative_tokens=3)


def speculative(options: EngineOptions) -> object:
    return engine_arguments("/model", options, on_cpu=True).get("speculative_config")


def test_each_method_of_speculation_gets_what_it_takes() -> None:
    assert speculative(EngineOptions()) is None
    assert speculative(NGRAM) == {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    assert speculative(DRAFTED) == {"method": "draft_model", "num_speculative_tokens": 3, "model": "/small"}


def test_a_draft_model_that_is_nowhere_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        speculative(EngineOptions(speculation="draft_model"))
    assert refused.value.param == "draft"


def test_a_compiled_form_is_of_the_engine_without_its_draft() -> None:
    plain = engine_arguments("/model", without_draft(DRAFTED), on_cpu=True)
    assert plain == engine_arguments("/model", EngineOptions(speculative_tokens=3), on_cpu=True)
    assert without_draft(NGRAM) == NGRAM
