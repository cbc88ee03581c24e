"""What every stage behind training takes for granted of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilenet.errors import UsageError


def check_finite(model: Any) -> None:
    """Refuses a model with a weight that is no finite number.

    Raises:
        UsageError: names the weight.
    """
    for weight, value in zip(model.weights, model.get_weights(), strict=True):
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise UsageError(
                f"weight {weight.name}", "NaN or infinity", "finite values", "train the model again"
            )
