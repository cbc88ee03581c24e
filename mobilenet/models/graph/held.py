"""Variables that stand still while others train, although the optimizer knows them.

A batch norm that is not trainable would run in inference mode; here its statistics can move while
its gain and offset are put back behind every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from mobilenet.models.graph import variables


class Held(tf.Module):
    """Copies of variables, written back behind the optimizer; part of the checkpoints."""

    def __init__(self, held: Iterable[tf.Variable]) -> None:
        super().__init__(name="held")
        self.held = list(held)
        self.copies = [
            variables.beside(tf.convert_to_tensor(variable), "held") for variable in self.held
        ]

    def apply(self) -> None:
        """Puts every variable back."""
        for variable, copy in zip(self.held, self.copies, strict=True):
            variables.update(variable, _assign, [copy])


def _assign(variable: Any, value: Any) -> None:
    variable.assign(value)
