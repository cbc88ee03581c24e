"""Small `.tflite` files from TensorFlow's own converter, and what the interpreter makes of one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from small_models import TINY_V1_SIZE, tiny_v1


def _sparse(model: Any) -> Any:
    """A copy of the model of which four of five weights are zero."""
    copy, rng = tf_keras.models.clone_model(model), np.random.default_rng(0)
    copy.set_weights([w * (rng.random(w.shape) > 0.8) for w in model.get_weights()])
    return copy


@functools.cache
def flatbuffer(kind: str, softmax: bool = False, channels: int = 3) -> bytes:
    """`tiny_v1` as float, float16, dynamic, sparse, int8 or uint8 (these two also in and out)."""
    model = tiny_v1(softmax, channels)
    converter = tf.lite.TFLiteConverter.from_keras_model(
        _sparse(model) if kind == "sparse" else model
    )
    if kind == "sparse":
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    elif kind != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind in ("int8", "uint8"):
        rng, shape = np.random.default_rng(1), (1, TINY_V1_SIZE, TINY_V1_SIZE, channels)
        converter.representative_dataset = lambda: (
            [rng.uniform(-1, 1, shape).astype(np.float32)] for _ in range(10)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, kind)
    return bytes(converter.convert())


def invoke(data: bytes, batch: np.ndarray) -> np.ndarray:
    """Runs a file image by image, by the runtime alone; quantized values in and out."""
    runner = Interpreter(model_content=data, num_threads=1)
    runner.allocate_tensors()
    rows = []
    for image in batch:
        runner.set_tensor(runner.get_input_details()[0]["index"], image[None])
        runner.invoke()
        rows.append(runner.get_tensor(runner.get_output_details()[0]["index"])[0])
    return np.stack(rows)


def io_details(data: bytes) -> tuple[dict, dict]:
    runner = Interpreter(model_content=data, num_threads=1)
    return runner.get_input_details()[0], runner.get_output_details()[0]
