"""Random numbers of training: a pure function of seed and step, so that a run that continues draws
the same ones; and operations that always return the same bits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras

_LAYERS = 0x44524F50  # separates the seeds of layers from those of the data
_RandomLayer: Any = tf_keras.__internal__.layers.BaseRandomLayer


@contextlib.contextmanager
def drawn_by_step(
    model: Any, seed: int, step: Callable[[], tf.Tensor], further: Iterable[Any] = ()
) -> Iterator[None]:
    """Inside the block dropout, and every other random layer of Keras, draws its numbers from the
    seed, the layer, the step and the replica.

    Keras' own generators have a state inside the operation, which cannot be saved.

    Args:
        model: of any layers, nested and wrapped ones too.
        seed: of the run.
        step: returns the number of the forward pass; called while a step is traced.
        further: random layers that are not the model's.
    """
    layers = [layer for layer in model.submodules if isinstance(layer, _RandomLayer)]
    layers += further
    generators = [layer._random_generator for layer in layers]
    before = [generator._rng_type for generator in generators]
    for index, generator in enumerate(generators):
        generator._rng_type = generator.RNG_STATELESS
        key = functools.partial(_key, seed, index, step)
        generator.make_seed_for_stateless_op = key
    try:
        yield
    finally:
        for generator, kind in zip(generators, before, strict=True):
            generator._rng_type = kind
            del generator.make_seed_for_stateless_op


def _key(seed: int, layer: int, step: Callable[[], tf.Tensor]) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    key = tf.constant([seed, _LAYERS + layer], tf.int64)
    return tf.random.fold_in(tf.random.fold_in(key, tf.cast(step(), tf.int64)), replica)


def enable_determinism(seed: int) -> None:
    """Makes all operations of this process deterministic, for good.

    Args:
        seed: of the process; TensorFlow then refuses random operations without one.
    """
    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
