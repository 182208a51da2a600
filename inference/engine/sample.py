"""A cheap digest of a model's weights: a few values of every parameter, wherever the parameters are."""

from __future__ import annotations

import hashlib
from typing import Any

VALUES_A_PARAMETER = 64


def sample_digest(model: Any) -> str:
    """SHA-256 over names, shapes and evenly spread values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        stride = max(1, values.numel() // VALUES_A_PARAMETER)
        some = values[::stride][:VALUES_A_PARAMETER].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()
