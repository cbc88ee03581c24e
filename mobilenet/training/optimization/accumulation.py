"""A train step whose gradients are the mean over parts of its batch, in the memory of one part."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras


def train_step(model: Any, data: Any, parts: int) -> dict[str, Any]:
    """One update of the weights and metrics; call it while a train step is traced.

    Args:
        model: a compiled `Learner`.
        data: a batch, as `train_step` of a model gets it, of a multiple of `parts` images.
        parts: of equal size, computed one after the other.

    Returns:
        The metrics by name, of all images.
    """
    images, labels, _ = tf_keras.utils.unpack_x_y_sample_weight(data)
    weights = model.trainable_variables
    split = tf.nest.map_structure(lambda tensor: _split(tensor, parts), (images, labels))

    def compute(part: Any, sums: Any) -> Any:
        own_images, own_labels = tf.nest.map_structure(lambda tensor: tensor[part], split)
        model.traced.part = part  # of its own random numbers
        with tf.GradientTape() as tape:
            outputs = model(own_images, training=True)
            loss = model.compute_loss(own_images, own_labels, outputs, None)
        pairs = model.optimizer.compute_gradients(loss, weights, tape)
        model.update_metrics(own_labels, outputs)  # their results wait for other replicas
        gradients = [tf.convert_to_tensor(gradient) for gradient, _ in pairs]
        return part + 1, [total + gradient for total, gradient in zip(sums, gradients, strict=True)]

    start = [tf.zeros_like(weight) for weight in weights]
    # One after the other: the parts of an unrolled loop would be in memory together.
    _, sums = tf.while_loop(
        lambda part, sums: part < parts, compute, (0, start), parallel_iterations=1
    )
    model.traced.part = 0
    model.optimizer.apply_gradients(
        [(total / parts, w) for total, w in zip(sums, weights, strict=True)]
    )
    return dict(model.get_metrics_result())


def _split(tensor: tf.Tensor, parts: int) -> tf.Tensor:
    """`[batch, ...]` as `[parts, batch / parts, ...]`."""
    shape = tf.shape(tensor)
    whole = tf.reshape(tensor, tf.concat([[parts, shape[0] // parts], shape[1:]], 0))
    batch = tensor.shape[0]
    return tf.ensure_shape(
        whole, [parts, None if batch is None else batch // parts, *tensor.shape[1:]]
    )
