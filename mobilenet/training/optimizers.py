"""The optimizers by name, with the seeds' meaning of each number."""

from __future__ import annotations

from typing import Any

import tf_keras

from mobilenet.configs.run import TrainConfig


def make(config: TrainConfig, rate: Any) -> tf_keras.optimizers.Optimizer:
    """An optimizer of `config.optimizer_name` at the learning rate `rate` (a number or a schedule).

    `sgd` has no momentum; `momentum` and `rmsprop` take `op_momentum`, which is beta 1 of `adam`
    and `adamw`.
    """
    optimizers = tf_keras.optimizers
    momentum, epsilon = config.op_momentum, config.op_epsilon
    # jit_compile makes a step on a CPU 4 to 16 times slower and is on by default with a GPU.
    common = {"learning_rate": rate, "jit_compile": False}
    if config.optimizer_name == "sgd":
        return optimizers.SGD(**common)
    if config.optimizer_name == "momentum":
        return optimizers.SGD(momentum=momentum, **common)
    if config.optimizer_name == "rmsprop":
        return optimizers.RMSprop(
            rho=config.op_decay_rate, momentum=momentum, epsilon=epsilon, **common
        )
    if config.optimizer_name == "adam":
        return optimizers.Adam(beta_1=momentum, epsilon=epsilon, **common)
    decayed = optimizers.AdamW(
        weight_decay=config.decoupled_weight_decay, beta_1=momentum, epsilon=epsilon, **common
    )
    decayed.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return decayed
