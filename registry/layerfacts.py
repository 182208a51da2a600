"""Which layers of a model attend to everything, which to a window, and which keep a state; from its config."""

from __future__ import annotations

from typing import Any

MAX_LAYERS = 10_000
WINDOW_KINDS = ("sliding_attention", "chunked_attention")
RECURRENT_KINDS = ("linear_attention", "mamba", "recurrent", "conv")
# Families whose config names no layer: a window in every second layer, or in all but each sixth.
EVERY_SECOND = ("gemma2", "cohere2")
PATTERNS = {"gemma3_text": 6, "gemma3": 6}


def layer_kinds(config: dict[str, Any]) -> dict[str, int | None]:
    """``window_layers``, ``recurrent_layers`` and ``state_size``; None where the config does not tell."""
    layers = _count(config.get("num_hidden_layers") or config.get("n_layer")) or 0
    named = config.get("layer_types") or config.get("layers_block_type")
    kinds = [kind for kind in named if isinstance(kind, str)] if isinstance(named, list) else []
    if kinds and len(kinds) <= MAX_LAYERS:
        return {
            "window_layers": sum(kind in WINDOW_KINDS for kind in kinds),
            "recurrent_layers": sum(kind in RECURRENT_KINDS for kind in kinds),
            "state_size": _state_size(config),
        }
    windows, recurrent = None, None
    family = config.get("model_type")
    every = _count(config.get("sliding_window_pattern")) or (
        PATTERNS.get(family) if isinstance(family, str) else None
    )
    if family in EVERY_SECOND:
        windows = layers // 2
    elif every:
        windows = layers - layers // every
    if family in ("mamba", "mamba2", "falcon_mamba"):
        recurrent = layers
    elif period := _count(config.get("attn_layer_period")):
        # Jamba: one attention layer in each period.
        recurrent = layers - layers // period
    return {
        "window_layers": windows,
        "recurrent_layers": recurrent,
        "state_size": _state_size(config) if recurrent else None,
    }


def _state_size(config: dict[str, Any]) -> int | None:
    """Elements of one Mamba layer's state: the recurrent part and the convolution's."""
    hidden = _count(config.get("hidden_size") or config.get("d_model"))
    inner = (
        _count(config.get("intermediate_size"))
        if config.get("model_type") in ("mamba", "falcon_mamba")
        else None
    )
    expand = _count(config.get("mamba_expand") or config.get("expand"))
    inner = inner or (hidden * expand if hidden and expand else None)
    state = _count(config.get("mamba_d_state") or config.get("state_size") or config.get("d_state"))
    kernel = _count(config.get("mamba_d_conv") or config.get("conv_kernel") or config.get("d_conv"))
    if not inner or not state:
        return None
    return inner * state + inner * ((kernel or 1) - 1)


def _count(value: Any) -> int | None:
    """A positive whole number of a sane size, or None: the facts that matter are checked elsewhere."""
    return value if type(value) is int and 0 < value <= 2**40 else None
