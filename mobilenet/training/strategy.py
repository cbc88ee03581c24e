"""Strategies of tf.distribute by name, and the precision in which models are built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from mobilenet.configs.run import STRATEGIES
from mobilenet.errors import UsageError, one_of


def create_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy with this name.

    Raises:
        UsageError: no such name, or its devices are not available.
    """
    one_of("distribution_strategy", name, STRATEGIES)
    try:
        if name == "mirrored":
            return tf.distribute.MirroredStrategy()
        if name == "multi_worker":
            return tf.distribute.MultiWorkerMirroredStrategy()
        if name == "tpu":
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UsageError(
            "distribution_strategy", name, f"its devices ({error})", "none runs anywhere"
        ) from None
    return tf.distribute.get_strategy()


def set_precision(name: str) -> None:
    """Sets the dtype policy of models that are built from now on."""
    policy: Any = tf_keras.mixed_precision.Policy(name)
    tf_keras.mixed_precision.set_global_policy(policy)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """The dtype policy of models that are built in the block; the process's own afterwards."""
    before = tf_keras.mixed_precision.global_policy()
    set_precision(name)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
