"""Float models as ONNX: the outputs of ONNX Runtime are those of Keras, for our operators and for
those of models like them; what is not written is named.
"""

from __future__ import annotations

import collections
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import short_blocks  # noqa: E402

import mobilenet
from mobilenet import converter
from mobilenet.configs.card import Card
from mobilenet.errors import UsageError, VerificationError
from mobilenet.export import frozen_graph, onnx_graph

tf_keras = pytest.importorskip("tf_keras")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

layers = tf_keras.layers
SHAPE = (32, 32, 3)


def randomized(model: Any) -> Any:
    """Weights with which the signal reaches the outputs, and batch norms that change something."""
    noise = np.random.default_rng(0)

    def weight(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) < 2:
            return noise.uniform(0.6, 1.4, shape)
        inputs = math.prod(shape[:2] if shape[-1] == 1 else shape[:-1])  # depthwise: of a channel
        return noise.normal(0, 1.5 / math.sqrt(inputs), shape)

    model.set_weights([weight(value.shape) for value in model.get_weights()])
    return model


def own_model() -> Any:
    """Every layer that ours do not have, a size that is open, and odd sides under SAME."""
    inputs = tf_keras.Input((None, None, 3))
    x = layers.Rescaling([0.5, 0.25, 1.0], [0.0, 0.1, -1.0])(inputs)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 1.0, 2.0])(x)
    x = layers.ZeroPadding2D(((0, 1), (2, 0)))(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(8, (3, 5), strides=2, padding="same", activation="swish")(x)
    x = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", depth_multiplier=2)(x)
    x = layers.ReLU(negative_slope=0.1)(x)
    side = layers.Conv2D(16, 3, groups=4, padding="same", use_bias=False)(x)
    side = layers.BatchNormalization(scale=False)(side)
    x = layers.Subtract()([layers.Activation("tanh")(side), x])
    x = layers.Concatenate()([layers.Activation("hard_sigmoid")(x), side])
    x = layers.AveragePooling2D(3, strides=2, padding="same")(x)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Reshape((4, 2, 4))(layers.Dense(32, "relu6")(x))
    x = layers.Flatten()(layers.Dropout(0.5)(layers.Conv2D(6, 2, activation="elu")(x)))
    return tf_keras.Model(inputs, layers.Dense(5, "softmax")(x))


def outputs(data: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"images": images})
    return np.asarray(result)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "own"])
def test_onnx_runtime_computes_the_outputs_of_keras(name: str) -> None:
    is_own = name == "own"
    fields = {"width_multiplier": 0.25, "num_classes": 10}
    if not is_own:
        fields["blocks"] = short_blocks(name)
    model = randomized(own_model() if is_own else mobilenet.build(name, SHAPE, **fields))
    shape = (31, 26, 3) if is_own else SHAPE
    reference = frozen_graph.reference_model(model, "softmax" if is_own else None)
    data = onnx_graph.serialize(reference, None, shape, "outputs")
    images = np.random.default_rng(1).uniform(-1, 1, (3, *shape)).astype(np.float32)
    expected = reference(images, training=False).numpy()
    largest = np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 1e-3 * largest
    np.testing.assert_allclose(outputs(data, images), expected, rtol=0, atol=1e-5 * largest)
    kinds = collections.Counter(node.op_type for node in onnx.load_from_string(data).graph.node)
    assert not kinds["BatchNormalization"]
    if not is_own:
        convolutions = [layer for layer in model.layers if "Conv2D" in type(layer).__name__]
        assert kinds["Conv"] == len(convolutions) and kinds["Transpose"] == 1


def test_a_layer_that_is_not_written_is_named() -> None:
    inputs = tf_keras.Input(SHAPE)
    pooled = layers.GlobalAveragePooling2D()(layers.LayerNormalization(name="norm")(inputs))
    model = tf_keras.Model(inputs, layers.Dense(3)(pooled))
    with pytest.raises(UsageError, match="model: got 'layer norm of class LayerNormalization'"):
        onnx_graph.serialize(model, None, SHAPE)


def test_a_file_with_other_outputs_is_not_written(tmp_path: Path) -> None:
    inputs = tf_keras.Input(SHAPE)
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(inputs)))
    data = onnx_graph.serialize(model, 2, SHAPE)
    images = np.random.default_rng(0).uniform(0, 1, (5, *SHAPE)).astype(np.float32)
    card = Card(input_shape=SHAPE, labels=("a", "b", "c"))
    path, difference = onnx_graph.write(tmp_path / "out", data, card, model, images)
    assert difference < 1e-5 and path.read_bytes() == data
    assert (tmp_path / "out/labels.txt").read_text() == "a\nb\nc\n"
    model.set_weights([model.get_weights()[0], np.full(3, 0.01, np.float32)])
    with pytest.raises(VerificationError, match=r"outputs within 0\.0001"):
        onnx_graph.write(tmp_path / "other", data, card, model, images)
    assert not (tmp_path / "other").exists()


def test_the_command_writes_onnx(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fields = {"width_multiplier": 0.25, "num_classes": 10, "blocks": short_blocks("mobilenet_v1")}
    model = mobilenet.build("mobilenet_v1", SHAPE, **fields)
    mobilenet.save_model(randomized(model), tmp_path / "model", preprocessing="inception")
    args = ["--model", tmp_path / "model", "--format=onnx", "--batch=0", "--dataset_name=digits"]
    converter.run([*map(str, args), "--verify_images=4"])
    data = (tmp_path / "onnx/model.onnx").read_bytes()
    out = capfd.readouterr().out
    assert "images, float32 [-1, 32, 32, 3]" in out and "logits, float32 [-1, 10]" in out
    card = Card.from_file(tmp_path / "onnx/card.json")
    assert card.preprocessing == Card().preprocessing and card.input is not None
    assert outputs(data, np.zeros((3, *SHAPE), np.float32)).shape == (3, 10)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match="--format: got 'onnx'.*pip install onnx onnxruntime"):
        converter.run(["--model", str(tmp_path / "absent"), "--format=onnx"])
