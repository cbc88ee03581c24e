"""Optimizers by name, with decoupled weight decay, clipped gradients and a rate for each layer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import tf_keras

from mobilenet.configs.training import TrainConfig
from mobilenet.training.optimization.lamb import Lamb

Factors = Mapping[int, float]
_optimizers: Any = tf_keras.optimizers


def create_optimizer(
    config: TrainConfig, rate: Any, variables: Collection[Any] = (), factors: Factors | None = None
) -> Any:
    """An optimizer of `config.optimizer_name`.

    `sgd` has no momentum; `momentum` and `rmsprop` take `op_momentum`, which is beta 1 of `adam`,
    `adamw`, `lion` and `lamb`.

    Args:
        config: of the stage.
        rate: the learning rate, a number or a schedule.
        variables: that are trained. Those of one axis or none, which are biases, gains and offsets
            of norms, do not decay, as in timm (timm/optim/_param_groups.py).
        factors: of the rate, by the id of a variable; 1 for the others.
    """
    kind, settings = _kind_of(config)
    if factors is not None:
        kind = type(f"{kind.__name__}WithFactors", (_WithFactors, kind), {})
    # jit_compile makes a step on a CPU 4 to 16 times slower and is on by default with a GPU.
    settings |= {"learning_rate": rate, "jit_compile": False}
    if config.decoupled_weight_decay or config.optimizer_name == "adamw":
        settings["weight_decay"] = config.decoupled_weight_decay
    if config.clip_norm:
        settings["global_clipnorm"] = config.clip_norm
    optimizer = kind(**settings)
    if factors is not None:
        optimizer.set_factors([(v, factors.get(id(v), 1.0)) for v in variables])
    if settings.get("weight_decay"):
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if v.shape.rank < 2])
    return optimizer


def _kind_of(config: TrainConfig) -> tuple[Any, dict[str, Any]]:
    """The class of an optimizer, and its own settings."""
    momentum = config.op_momentum
    of_adam = {"beta_1": momentum, "epsilon": config.op_epsilon}
    of_rmsprop = {"rho": config.op_decay_rate, "momentum": momentum, "epsilon": config.op_epsilon}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "sgd": (_optimizers.SGD, {}),
        "momentum": (_optimizers.SGD, {"momentum": momentum}),
        "rmsprop": (_optimizers.RMSprop, of_rmsprop),
        "adam": (_optimizers.Adam, of_adam),
        "adamw": (_optimizers.AdamW, of_adam),
        "lion": (_optimizers.Lion, {"beta_1": momentum}),
        "lamb": (Lamb, of_adam),
    }
    return kinds[config.optimizer_name]


class _WithFactors:
    """Multiplies the learning rate of single variables; their weight decay follows.

    tf_keras has one rate for all variables, which each update and each decay read from the
    property `learning_rate`.
    """

    _factors: Mapping[Any, float] = {}
    _factor = 1.0

    def set_factors(self, pairs: Iterable[tuple[Any, float]]) -> None:
        """Sets the factors of variables; by their keys, which those of replicas share."""
        self._factors = {self._var_key(v): x for v, x in pairs}  # type: ignore[attr-defined]

    @property
    def learning_rate(self) -> Any:
        rate: Any = super().learning_rate  # type: ignore[misc]
        return rate if self._factor == 1.0 else rate * self._factor

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        super(_WithFactors, type(self)).learning_rate.fset(self, value)  # type: ignore[misc]

    @contextlib.contextmanager
    def _scaled_for(self, variable: Any) -> Iterator[None]:
        key = self._var_key(variable)  # type: ignore[attr-defined]
        self._factor = self._factors.get(key, 1.0)
        try:
            yield
        finally:
            self._factor = 1.0

    def update_step(self, gradient: Any, variable: Any) -> None:
        with self._scaled_for(variable):
            super().update_step(gradient, variable)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Any) -> None:
        for variable in variables:
            with self._scaled_for(variable):
                super()._apply_weight_decay([variable])  # type: ignore[misc]
