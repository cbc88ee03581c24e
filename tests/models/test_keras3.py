"""Models that Keras 3 saves compute the same in tf_keras; expected outputs are Keras 3's own."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf_keras = pytest.importorskip("tf_keras")
keras = pytest.importorskip("keras", minversion="3")

from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.loading import load_model  # noqa: E402
from mobilenet.models import saving  # noqa: E402

L = keras.layers


def with_operators() -> Any:
    """Operators on tensors, activations that Keras 2 lacks, and settings of other names."""
    source = L.Input((16, 16, 3))
    x = L.Conv2D(8, 3, padding="same", use_bias=False)(source / 127.5 - 1.0)
    x = L.Activation("hard_silu")(L.BatchNormalization()(x))
    gate = L.GlobalAveragePooling2D(keepdims=True)(x)
    x = x * L.Activation("hard_sigmoid")(L.Conv2D(8, 1)(2.0 - gate))
    y = L.LeakyReLU(negative_slope=0.2)(L.DepthwiseConv2D(3, padding="same")(x))
    x = L.Dropout(0.1)(keras.ops.add(x, y) * 3.0)
    x = L.SeparableConv2D(6, 3, activation="relu6")(x)
    x = L.Concatenate()([x, L.Conv2D(6, 1, name="last")(x)])
    return keras.Model(source, L.Dense(4)(L.Flatten()(x)))


def with_functions() -> Any:
    """Operators that equal layers, by `keras.ops` and `keras.activations`."""
    o = keras.ops
    source = L.Input((16, 16, 3))
    x = keras.applications.imagenet_utils.preprocess_input(source, mode="caffe")
    x = o.divide(x, np.float32([58.0, 57.0, 57.5])) + np.float32([0.1, 0.2, 0.3]).reshape(
        1, 1, 1, 3
    )
    x = L.Conv2D(8, 3, padding="valid")(o.pad(x[..., ::-1], ((0, 0), (0, 1), (1, 1), (0, 0))))
    x = o.max_pool(o.relu(x), 2)
    pieces = [o.relu6(x), o.silu(x), o.hard_silu(x), o.sigmoid(x), o.tanh(x), o.elu(x), o.selu(x)]
    pieces += [o.leaky_relu(x, 0.1), o.clip(x, 0, 2), o.softplus(x), o.maximum(x, 0.0), -x]
    x = o.average_pool(o.concatenate([*pieces, o.hard_sigmoid(x)], axis=-1), 3, 2, "same")
    x = L.Conv2D(8, 1)(o.transpose(x, (0, 2, 1, 3)))
    x = o.maximum(x, o.gelu(x, approximate=False)) - o.minimum(x, o.flip(x, -1))
    gate = o.sigmoid(L.Conv2D(8, 1)(o.mean(x, axis=(1, 2), keepdims=True)))
    flat = o.reshape(o.multiply(x, gate), (-1, 8 * 4 * 4))
    y = o.squeeze(o.expand_dims(o.max(x, axis=[1, 2]), 1), 1)
    return keras.Model(source, o.softmax(L.Dense(4)(o.concatenate([flat, y], 1)) / 4))


def sequential() -> Any:
    scaling = L.Normalization()
    scaling.adapt(np.random.default_rng(1).uniform(0, 255, (8, 16, 16, 3)))
    return keras.Sequential(
        [L.Input((16, 16, 3)), scaling, L.RandomFlip("horizontal"), L.Conv2D(4, 3, strides=2),
         L.PReLU(shared_axes=[1, 2]), L.MaxPooling2D(), L.Flatten(), L.Dense(3)]
    )  # fmt: skip


def nested() -> Any:
    base = keras.applications.MobileNet((32, 32, 3), alpha=0.25, include_top=False, weights=None)
    base.trainable = False
    source = L.Input((32, 32, 3))
    x = L.Rescaling(1 / 127.5, offset=-1)(source)
    x = L.GlobalAveragePooling2D()(base(x, training=False))
    return keras.Model(source, L.Dense(3)(L.Dropout(0.2)(x)))


def minimal_v3() -> Any:
    return keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.75, weights=None, classes=5, classifier_activation=None
    )


def drawn(draw: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
    """A weight that is neither 0 nor 1, and lets signals neither die nor explode."""
    if "kernel" in name:
        fan_in = np.prod(shape[:2]) if shape[-1] == 1 else np.prod(shape[:-1])
        return draw.normal(0, np.sqrt(2 / fan_in), shape)
    is_factor = "gamma" in name or "variance" in name
    return draw.uniform(0.5, 1.5, shape) if is_factor else draw.normal(0, 0.2, shape)


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize(
    "make",
    [
        with_operators,
        with_functions,
        sequential,
        nested,
        pytest.param(minimal_v3, marks=pytest.mark.slow),
    ],
)
def test_outputs_are_those_of_keras_3(make: Callable[[], Any], ending: str, tmp_path: Path) -> None:
    theirs = make()
    draw = np.random.default_rng(2)
    for layer in theirs._flatten_layers(include_self=False, recursive=True):
        if layer.weights and not isinstance(layer, (keras.Model, L.Normalization)):
            layer.set_weights([drawn(draw, w.name, tuple(w.shape)) for w in layer.weights])
    theirs.save(tmp_path / f"model{ending}")
    ours = load_model(tmp_path / f"model{ending}").model
    assert isinstance(ours, tf_keras.Model)
    images = draw.uniform(0, 255, (4, *theirs.input_shape[1:])).astype(np.float32)
    expected = np.asarray(theirs(images, training=False))
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours(images, training=False) / scale, expected / scale, atol=1e-5)


def from_image(function: Callable[[Any], Any]) -> Any:
    source = L.Input((8, 8, 3))
    return keras.Model(source, function(source))


REFUSED = {
    "another operator": (lambda: from_image(lambda x: keras.ops.exp(x)), "Exp.*layer"),
    "an operator over other axes": (
        lambda: from_image(lambda x: keras.ops.mean(x, axis=-1)),
        r"layer 'mean\w*': got 'keras.ops Mean\(axis=-1, keepdims=False\)', expected a layer",
    ),
    "a shape of other values": (
        lambda: from_image(lambda x: keras.ops.reshape(x, (-1, 96))),
        r"keras.ops Reshape\(newshape=\[-1, 96\]\)",
    ),
    "two of three channels": (
        lambda: from_image(lambda x: keras.ops.stack([x[..., 2], x[..., 1]], -1)),
        "keras.ops GetItem",
    ),
    "an activation of other meaning": (
        lambda: from_image(L.Conv2D(2, 1, activation="hard_sigmoid", name="c")),
        "layer 'c': got 'hard_sigmoid', expected an activation that Keras 2 computes alike",
    ),
    "a layer of Keras 3 alone": (
        lambda: (
            from_image(L.AdaptiveAveragePooling2D(2, name="p"))
            if hasattr(L, "AdaptiveAveragePooling2D")
            else from_image(L.AugMix(name="p"))
        ),
        "AdaptiveAveragePooling2D|AugMix",
    ),
    "a division by the image": (
        lambda: from_image(lambda x: 1.0 / (x + 1.0)),
        "keras.ops TrueDivide",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_keras_2_lacks_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    make().save(tmp_path / "model.keras")
    with pytest.raises(UsageError, match=message) as error:
        saving.load(tmp_path / "model.keras")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "model.keras") in str(error.value)
    assert "build(config)" not in str(error.value)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    import h5py

    path, damaged = tmp_path / "model.keras", tmp_path / "damaged.keras"
    from_image(L.Conv2D(2, 1, name="c")).save(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        del file["layers/conv2d/vars/1"]
        file["layers/conv2d/other"] = np.zeros(2, np.float32)  # the size of the file is the same
    with zipfile.ZipFile(damaged, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.write(tmp_path / name, name)
    with pytest.raises(
        UsageError, match=r"layer 'c' \(layers/conv2d/vars\): got \[\[1, 1, 3, 2\]\]"
    ):
        saving.load(damaged)
