"""Optimizers against their formulas in numpy, LAMB against that of Keras 3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from short_training import CONFIG, STEPS, Recorder, Signal, batches, make_job  # noqa: E402
from small_models import CLASSES, dropout_model, two_layer_model  # noqa: E402

from mobilenet.configs.archs import MobileNetV1Config  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.models import builder  # noqa: E402
from mobilenet.training import engine  # noqa: E402
from mobilenet.training.optimization import layer_decay  # noqa: E402
from mobilenet.training.optimization.lamb import Lamb  # noqa: E402
from mobilenet.training.optimization.optimizers import create_optimizer  # noqa: E402

START = np.array([[1.0, -2.0, 0.5]])
GRADIENTS = np.array([[[0.1, -0.4, 2.0]], [[0.3, 0.2, -1.0]]])
RATE = 0.05
Update = Callable[..., np.ndarray]


def sgd(w: np.ndarray, rate: float = RATE, decay: float = 0.0) -> np.ndarray:
    for g in GRADIENTS:
        w = w * (1 - rate * decay) - rate * g
    return w


def momentum(w: np.ndarray, rate: float = RATE, decay: float = 0.0) -> np.ndarray:
    velocity = 0.0
    for g in GRADIENTS:
        velocity = 0.8 * velocity - rate * g
        w = w * (1 - rate * decay) + velocity
    return w


def rmsprop(w: np.ndarray, rate: float = RATE, decay: float = 0.0) -> np.ndarray:
    """As in TensorFlow 1: epsilon inside the root, momentum over the scaled gradient."""
    square, velocity = 0.0, 0.0
    for g in GRADIENTS:
        square = 0.7 * square + 0.3 * g**2
        velocity = 0.8 * velocity + rate * g / np.sqrt(square + 0.002)
        w = w * (1 - rate * decay) - velocity
    return w


def adam(w: np.ndarray, rate: float = RATE, decay: float = 0.0) -> np.ndarray:
    first, second = 0.0, 0.0
    for t, g in enumerate(GRADIENTS, 1):
        first = 0.8 * first + 0.2 * g
        second = 0.999 * second + 0.001 * g**2
        scale = rate * np.sqrt(1 - 0.999**t) / (1 - 0.8**t)
        w = w * (1 - rate * decay) - scale * first / (np.sqrt(second) + 0.002)
    return w


def adamw(w: np.ndarray, rate: float = RATE, decay: float = 0.0) -> np.ndarray:
    return adam(w, rate, decay)


def lion(w: np.ndarray, rate: float = RATE, decay: float = 0.0) -> np.ndarray:
    """arXiv 2302.06675, algorithm 2."""
    mean = 0.0
    for g in GRADIENTS:
        w = w * (1 - rate * decay) - rate * np.sign(0.8 * mean + 0.2 * g)
        mean = 0.99 * mean + 0.01 * g
    return w


def lamb(w: np.ndarray, rate: float = RATE, decay: float = 0.0) -> np.ndarray:
    """arXiv 1904.00962, algorithm 2."""
    first, second = 0.0, 0.0
    for t, g in enumerate(GRADIENTS, 1):
        first = 0.8 * first + 0.2 * g
        second = 0.999 * second + 0.001 * g**2
        root = np.sqrt(second / (1 - 0.999**t))
        update = first / (1 - 0.8**t) / (root + 0.002) + decay * w
        w = w - rate * np.linalg.norm(w) / np.linalg.norm(update) * update
    return w


def updated(config: TrainConfig, start: np.ndarray = START, **arguments: Any) -> np.ndarray:
    weight = tf.Variable(start, dtype=tf.float32)
    factors = arguments.get("factors")
    if factors is not None:
        arguments["factors"] = {id(weight): factors}
    optimizer = create_optimizer(config, RATE, [weight], **arguments)
    for gradient in GRADIENTS:
        optimizer.apply_gradients(
            [(tf.constant(gradient.reshape(start.shape), tf.float32), weight)]
        )
    return np.asarray(weight)


def config_of(update: Update, **fields: Any) -> TrainConfig:
    return TrainConfig(
        optimizer_name=update.__name__,
        op_momentum=0.8,
        op_decay_rate=0.7,
        op_epsilon=0.002,
        **fields,
    )


ALL = [sgd, momentum, rmsprop, adam, adamw, lion, lamb]


@pytest.mark.parametrize("update", ALL)
def test_an_optimizer_by_name_makes_its_update(update: Update) -> None:
    np.testing.assert_allclose(updated(config_of(update)), update(START), rtol=4e-6)


@pytest.mark.parametrize("update", ALL)
def test_kernels_decay_and_vectors_do_not(update: Update) -> None:
    config = config_of(update, decoupled_weight_decay=0.1)
    np.testing.assert_allclose(updated(config), update(START, decay=0.1), rtol=4e-6)
    np.testing.assert_allclose(updated(config, START[0]), update(START)[0], rtol=4e-6)


@pytest.mark.parametrize("update", ALL)
def test_a_factor_scales_rate_and_decay(update: Update) -> None:
    config = config_of(update, decoupled_weight_decay=0.1)
    expected = update(START, rate=RATE / 4, decay=0.1)
    np.testing.assert_allclose(updated(config, factors=0.25), expected, rtol=4e-6)


def test_gradients_are_scaled_to_the_norm() -> None:
    """Of all variables together: (3, 4) and 12 have the norm 13."""
    config = TrainConfig(optimizer_name="sgd", clip_norm=1.3)
    weights = [tf.Variable([0.0, 0.0]), tf.Variable([0.0])]
    optimizer = create_optimizer(config, 1.0, weights)
    gradients = [tf.constant([3.0, 4.0]), tf.constant([12.0])]
    optimizer.apply_gradients(zip(gradients, weights, strict=True))
    np.testing.assert_allclose(weights[0].numpy(), [-0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(weights[1].numpy(), [-1.2], rtol=1e-6)


def test_lamb_is_that_of_keras_3() -> None:
    """Of 50 steps, with a variable that is zero at first and one whose gradient is zero."""
    keras = pytest.importorskip("keras")
    random = np.random.default_rng(0)
    starts = [random.normal(size=(3, 4)), np.zeros((2, 2)), random.normal(size=3)]
    ours = [tf.Variable(x, dtype=tf.float32) for x in starts]
    theirs = [keras.Variable(np.float32(x)) for x in starts]
    settings = {"learning_rate": 0.02, "beta_1": 0.8, "epsilon": 1e-4}
    own, other = Lamb(**settings, jit_compile=False), keras.optimizers.Lamb(**settings)
    for _ in range(50):
        gradients = [np.float32(random.normal(size=x.shape)) for x in starts[:2]]
        gradients.append(np.zeros(3, np.float32))
        own.apply_gradients(zip(map(tf.constant, gradients), ours, strict=True))
        other.apply([tf.constant(g) for g in gradients], theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), keras.ops.convert_to_numpy(b), rtol=1e-4, atol=1e-6)
    again = Lamb.from_config(own.get_config())
    assert again.get_config() == own.get_config()


def test_each_block_has_a_lower_rate_than_the_one_after_it() -> None:
    model = builder.build(MobileNetV1Config(width_multiplier=0.25, num_classes=4), (32, 32, 3))
    factors = layer_decay.rate_factors(model, 0.5)

    def exponent(name: str) -> float:
        values = {factors[id(w)] for w in model.get_layer(name).weights}
        (value,) = values
        return float(-np.log2(value))

    assert exponent("Logits") == 0
    for number in range(14):
        name = f"Conv2d_{number}" + ("_pointwise" if number else "")
        assert exponent(name) == 14 - number
    assert exponent("Conv2d_13_depthwise") == 1
    assert set(factors) == {id(w) for w in model.weights}


def without_batch_norm() -> Any:
    tf_keras.utils.set_random_seed(1)
    layers = tf_keras.layers
    source = layers.Input((6, 6, 2))
    x = layers.ReLU()(layers.Conv2D(4, 3, strides=2, kernel_regularizer="l2")(source))
    return tf_keras.Model(source, layers.Dense(CLASSES)(layers.Flatten()(x)))


@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_accumulated_batches_are_one_large_batch(name: str, tmp_path: Path) -> None:
    """4 x 8 images against 32, for a model without batch norm."""
    weights, rows = [], []
    for parts in (1, 4):
        model = without_batch_norm()
        config = CONFIG.replace(
            batch_size=32 // parts, accumulation_steps=parts, clip_norm=0.5, optimizer_name=name
        )
        job = make_job(tmp_path / str(parts), config)
        large = lambda start: batches(4 * start).unbatch().batch(32)  # noqa: E731
        object.__setattr__(job, "training", large)
        rows.append(engine.fit(model, None, job))
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["top1"] == pytest.approx(other["top1"], abs=1e-3)


def test_batch_norms_see_one_part_at_a_time(tmp_path: Path) -> None:
    """After one step the moving mean has moved twice, by the means of both halves."""
    model = two_layer_model()
    norm = next(x for x in model.layers if "batch_norm" in x.name)
    images = next(iter(batches(0)))[0]
    convolved = model.get_layer("Conv")(images).numpy()
    expected = np.zeros(4)
    for half in np.split(convolved, 2):
        expected = 0.8 * expected + 0.2 * half.mean((0, 1, 2))
    watch = Recorder(stop_after=1)
    config = CONFIG.replace(accumulation_steps=2, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        engine.fit(model, None, make_job(tmp_path, config, watch))
    index = next(i for i, w in enumerate(model.weights) if w is norm.moving_mean)
    np.testing.assert_allclose(watch.weights[0][index], expected, rtol=1e-4)


def test_a_run_with_all_of_it_continues_with_the_same_bits(tmp_path: Path) -> None:
    config = CONFIG.replace(
        accumulation_steps=2,
        batch_size=4,
        clip_norm=1.0,
        layer_decay=0.7,
        decoupled_weight_decay=0.01,
        optimizer_name="lamb",
    )
    ends = []
    for name, step in (("whole", 0), ("killed", STEPS + 2)):
        model = dropout_model()
        if step:
            with pytest.raises(KeyboardInterrupt):
                engine.fit(model, None, make_job(tmp_path / name, config, Signal(step)))
        model = dropout_model()
        engine.fit(model, None, make_job(tmp_path / name, config))
        ends.append(model.get_weights())
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [{"accumulation_steps": 0}, {"clip_norm": -1.0}, {"layer_decay": 0.0}, {"layer_decay": 1.1}],
)
def test_values_outside_their_bounds_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(settings))}: got"):
        TrainConfig(**settings)


def test_accumulation_is_not_compiled_by_xla() -> None:
    with pytest.raises(UsageError, match="^accumulation_steps: got 2, expected 1 with `jit_comp"):
        RunConfig(jit_compile=True, train=TrainConfig(accumulation_steps=2))


REPLICAS = """
import pathlib, sys
import numpy as np, tensorflow as tf, tf_keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, "tests/training/optimization")
from short_training import CONFIG, make_job
from test_optimizers import batches, without_batch_norm
from mobilenet.training import engine

def run(strategy, parts, name):
    folder = pathlib.Path(sys.argv[1]) / name
    config = CONFIG.replace(
        accumulation_steps=parts, head_epochs=1, early_stopping=4, layer_decay=0.8, clip_norm=0.5,
        optimizer_name="lamb", decoupled_weight_decay=0.1,
    )
    with strategy.scope():
        model = without_batch_norm()
        rows = engine.fit(model, None, make_job(folder, config))
    return model.get_weights(), rows[-1]["loss"]

one = run(tf.distribute.get_strategy(), 4, "one")
two = run(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 2, "two")
for a, b in zip(one[0], two[0], strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
assert abs(one[1] - two[1]) < 1e-4, (one[1], two[1])
tf_keras.mixed_precision.set_global_policy("mixed_float16")
half = run(tf.distribute.get_strategy(), 4, "half")
assert abs(half[1] - one[1]) < 0.02, (half[1], one[1])
"""


@pytest.mark.slow
def test_two_replicas_and_16_bits_train_as_one_device(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS, tmp_path], capture_output=True, text=True,
        cwd=Path(__file__).parents[3], env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
