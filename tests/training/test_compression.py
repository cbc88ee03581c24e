"""Pruning and quantization-aware training in the user's own `compile` and `fit`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from small_models import L, inputs

import mobilenet
from mobilenet.configs.pruning import ChannelPruning, DnsPruning, MagnitudePruning, TfmotPruning
from mobilenet.configs.quantization import (
    CodebookQuantization,
    PostTraining,
    QuantizationAwareTraining,
)
from mobilenet.errors import UsageError
from mobilenet.training.compression import CompressedModel

SIZE, CLASSES, BATCH = 16, 4, 8
IMAGES = inputs(64, SIZE)
LABELS = np.random.default_rng(0).integers(0, CLASSES, len(IMAGES))
STEPS = 2 * len(IMAGES) // BATCH  # of two epochs
LOSS = "sparse_categorical_crossentropy"
CALLBACKS = tf_keras.callbacks


def small_cnn() -> Any:
    """Convolution, batch norm, ReLU, max pool, 1x1 convolution, flatten, dense, softmax."""
    return tf_keras.Sequential(
        [
            L.Input((SIZE, SIZE, 3)),
            L.Conv2D(8, 3, use_bias=False, name="stem"),
            L.BatchNormalization(name="norm"),
            L.ReLU(),
            L.MaxPool2D(),
            L.Conv2D(16, 1, activation="relu", name="pointwise"),
            L.GlobalAveragePooling2D(),
            L.Dropout(0.2),
            L.Dense(CLASSES, activation="softmax", name="classes"),
        ]
    )


def kernel(model: Any, layer: str = "pointwise") -> np.ndarray:
    return model.get_layer(layer).get_weights()[0]


def zeros(model: Any, layer: str = "pointwise") -> float:
    return float((kernel(model, layer) == 0).mean())


def start(config: Any = None, steps: int = STEPS, model: Any = None) -> Any:
    """The compression of a small model by the method of a config."""
    model = small_cnn() if model is None else model
    if config is None or isinstance(config, QuantizationAwareTraining | CodebookQuantization):
        return mobilenet.quantize_aware(model, IMAGES, steps=steps, config=config)
    return mobilenet.prune(model, steps=steps, config=config, data=(IMAGES, LABELS))


def fit(compression: Any, epochs: int = 2, **options: Any) -> Any:
    return compression.model.fit(
        IMAGES, LABELS, batch_size=BATCH, epochs=epochs, verbose=0, **options
    )


def test_a_share_of_zeros_is_reached_and_stays_in_the_plain_model() -> None:
    model = small_cnn()
    before = [weight.copy() for weight in model.get_weights()]
    pruning = mobilenet.prune(model, sparsity=0.75, steps=STEPS)
    pruning.model.compile("adam", LOSS, metrics=["accuracy"])
    fit(pruning, callbacks=pruning.callbacks)
    pruned = pruning.finish()
    assert zeros(pruned) == 0.75
    assert zeros(pruned, "stem") == zeros(pruned, "classes") == 0
    assert {type(layer).__module__.partition(".")[0] for layer in pruned.layers} == {"tf_keras"}
    np.testing.assert_allclose(
        pruned.predict(IMAGES, verbose=0), pruning.model.predict(IMAGES, verbose=0), atol=1e-6
    )
    for now, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, old)


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        ({"stem": 0.5}, {"stem": 0.5, "pointwise": 0.0, "classes": 0.0}),
        ({"point.*": 0.25, "classifier": 0.5}, {"stem": 0, "pointwise": 0.25, "classes": 0.5}),
    ],
)
def test_shares_by_role_and_by_name(sparsity: Any, expected: dict[str, float]) -> None:
    pruning = mobilenet.prune(small_cnn(), sparsity, steps=STEPS)
    pruning.model.compile("sgd", LOSS)
    fit(pruning)
    pruned = pruning.finish()
    assert {name: zeros(pruned, name) for name in expected} == expected


def test_a_model_of_stem_and_classifier_is_pruned_everywhere() -> None:
    model = tf_keras.Sequential(
        [L.Input((SIZE, SIZE, 3)), L.Conv2D(8, 3, name="stem"), L.Flatten(), L.Dense(4, name="end")]
    )
    pruning = mobilenet.prune(model, steps=STEPS)
    pruning.model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(pruning)
    pruned = pruning.finish()
    assert zeros(pruned, "stem") == zeros(pruned, "end") == 0.5


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_every_update_counts_and_phases_are_entered(steps_per_execution: int) -> None:
    """The steps of one execution are one call; statistics are frozen after 3/4 of the steps."""
    training = start(QuantizationAwareTraining(freeze=0.75))
    training.model.compile("sgd", LOSS, steps_per_execution=steps_per_execution)
    moving = []

    class Watch(CALLBACKS.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            norm = next(x for x in training.model.layers if "norm" in x.name)
            moving.append(norm.layer.moving_mean.numpy())

    fit(training, callbacks=[Watch()])
    assert int(training.model.step_count.numpy()) == STEPS == 16
    changed = [bool((a != b).any()) for a, b in zip(moving, moving[1:], strict=False)]
    assert changed == [True] * (12 // steps_per_execution - 1) + [False] * (
        4 // steps_per_execution
    )


def test_compiling_again_continues_the_schedule() -> None:
    pruning = mobilenet.prune(small_cnn(), sparsity=0.75, steps=STEPS)
    pruning.model.compile("adam", LOSS)
    fit(pruning, epochs=1)
    halfway = zeros(pruning.model)
    pruning.model.compile("sgd", LOSS)
    fit(pruning, epochs=1)
    assert 0.5 < halfway < 0.75 == zeros(pruning.finish())


def test_quantization_aware_training_gives_a_quantized_model() -> None:
    training = mobilenet.quantize_aware(small_cnn(), IMAGES, steps=STEPS)
    training.model.compile("adam", LOSS)
    first = training.model.evaluate(IMAGES, LABELS, verbose=0)
    history = fit(training, epochs=2).history["loss"]
    assert history[-1] < first
    quantized = training.finish()
    logits = quantized.model(IMAGES).numpy()
    probabilities = training.model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(tf.nn.softmax(logits).numpy(), probabilities, atol=1e-6)
    assert quantized.steps == () and quantized.card.preprocessing.name == "inception"
    plain = quantized.float_model(IMAGES).numpy()
    assert not np.array_equal(plain, logits)
    assert np.abs(plain - logits).max() < 0.1 * np.abs(logits).max()


@pytest.mark.parametrize(
    "config",
    [
        MagnitudePruning({"pointwise": 0.5}),
        pytest.param(DnsPruning(sparsity={"pointwise": 0.5}), marks=pytest.mark.slow),
        ChannelPruning(ratio={"all": 0.5}, round_to=1),
        QuantizationAwareTraining(),
        pytest.param(CodebookQuantization(restarts=1), marks=pytest.mark.slow),
    ],
    ids=lambda config: type(config).__name__,
)
def test_checkpoints_of_keras_bring_back_weights_and_state(config: Any, tmp_path: Path) -> None:
    """Weights in three forms continue in a new compression; whole models load, compute and refuse
    to train."""
    first = start(config)
    first.model.compile("sgd", LOSS)
    whole = not isinstance(config, CodebookQuantization)
    names = ["weights.h5", "checkpoint", *(["whole.keras", "whole.h5"] if whole else [])]
    savers = [
        CALLBACKS.ModelCheckpoint(
            str(tmp_path / name), save_weights_only="whole" not in name, verbose=0
        )
        for name in names
    ]
    fit(first, epochs=1, callbacks=savers)
    for name in names:
        again = start(config)
        again.model.load_weights(str(tmp_path / name))
        assert int(again.model.step_count.numpy()) == STEPS // 2
        for now, saved in zip(again.model.get_weights(), first.model.get_weights(), strict=True):
            np.testing.assert_array_equal(now, saved)
        if "whole" in name:
            loaded = tf_keras.models.load_model(tmp_path / name)
            assert isinstance(loaded, CompressedModel)
            outputs = (model.predict(IMAGES, verbose=0) for model in (loaded, first.model))
            np.testing.assert_array_equal(*outputs)
            with pytest.raises(UsageError, match="load its weights"):
                loaded.fit(IMAGES, LABELS, verbose=0)
    if not whole:
        with pytest.raises(UsageError, match="save_weights_only=True"):
            first.model.save(tmp_path / "model.keras")


def test_early_stopping_restores_masks_with_the_weights() -> None:
    """The best epoch is the first, so that the result has the zeros of that epoch."""
    pruning = mobilenet.prune(small_cnn(), sparsity=0.75, steps=STEPS)
    pruning.model.compile("sgd", LOSS)
    shares = []

    class Watch(CALLBACKS.Callback):  # type: ignore[misc, name-defined]
        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            shares.append(zeros(pruning.model))
            logs["val_loss"] = float(epoch)  # worse with every epoch

    stopping = CALLBACKS.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    fit(pruning, callbacks=[Watch(), stopping])
    assert shares[1] > shares[0] == zeros(pruning.model)
    assert int(pruning.model.step_count.numpy()) == STEPS // 2
    with pytest.warns(UserWarning, match="8 of the 16 steps .* reaches its target after 10"):
        assert zeros(pruning.finish()) == shares[0]


def test_other_callbacks_see_a_usual_fit(tmp_path: Path) -> None:
    pruning = start(MagnitudePruning({"pointwise": 0.5}))
    pruning.model.compile("sgd", LOSS, metrics=["accuracy"])
    rates = CALLBACKS.LearningRateScheduler(lambda epoch, rate: rate / 2)
    board = CALLBACKS.TensorBoard(str(tmp_path / "logs"))
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, np.ones(len(IMAGES)))).batch(BATCH)
    history = pruning.model.fit(
        data,
        validation_data=(IMAGES, LABELS),
        epochs=2,
        verbose=0,
        callbacks=[rates, board, *pruning.callbacks],
    ).history
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "lr"} <= set(history)
    assert history["lr"] == pytest.approx([0.005, 0.0025])
    assert list((tmp_path / "logs").rglob("events*"))
    assert zeros(pruning.finish()) == 0.5


def test_a_loop_of_ones_own_prunes_as_fit_does() -> None:
    results = []
    for own in (False, True):
        tf_keras.utils.set_random_seed(1)
        model = small_cnn()
        for layer in model.layers:
            layer.rate = 0.0  # dropout draws other numbers in another loop
        pruning = mobilenet.prune(model, sparsity=0.75, steps=STEPS)
        pruning.model.compile(tf_keras.optimizers.SGD(0.05), LOSS)
        train_by_hand(pruning) if own else fit(pruning, shuffle=False)
        results.append(pruning.finish().get_weights())
    for fitted, looped in zip(*results, strict=True):
        np.testing.assert_allclose(looped, fitted, rtol=1e-4, atol=1e-6)


def train_by_hand(pruning: Any) -> None:
    model, optimizer = pruning.model, pruning.model.optimizer
    loss = tf_keras.losses.SparseCategoricalCrossentropy()

    def update(images: Any, labels: Any) -> None:
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(value, weights), weights, strict=True))

    compiled = tf.function(update)
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(BATCH).repeat(2)
    for step, (images, labels) in enumerate(batches):
        if pruning.before_step(step):
            compiled = tf.function(update)
        compiled(images, labels)
        pruning.after_step(step + 1)


def test_several_inputs_are_pruned() -> None:
    first, second = L.Input((8,)), L.Input((4,))
    x = L.Concatenate()([L.Dense(16, activation="relu", name="a")(first), second])
    model = tf_keras.Model([first, second], L.Dense(1, name="end")(x))
    pruning = mobilenet.prune(model, sparsity=0.5, steps=8)
    pruning.model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(32, n)).astype(np.float32) for n in (8, 4)]
    pruning.model.fit(data, np.ones(32), batch_size=8, epochs=2, verbose=0)
    assert zeros(pruning.finish(), "a") == 0.5


def test_channels_are_removed_from_the_result() -> None:
    pruning = start(ChannelPruning(ratio={"pointwise": 0.5}, round_to=1))
    pruning.model.compile("sgd", LOSS)
    fit(pruning)
    thin = pruning.finish()
    assert kernel(thin).shape == (1, 1, 8, 8) and kernel(thin, "classes").shape == (8, CLASSES)
    np.testing.assert_allclose(
        thin.predict(IMAGES, verbose=0), pruning.model.predict(IMAGES, verbose=0), atol=1e-5
    )


def test_too_few_steps_are_a_warning_with_both_numbers_and_a_second_finish_an_error() -> None:
    pruning = mobilenet.prune(small_cnn(), sparsity=0.75, steps=100)
    pruning.model.compile("sgd", LOSS)
    fit(pruning)
    assert pruning.report.steps == 16 and not pruning.report.target_reached
    with pytest.warns(UserWarning, match="16 of the 100 steps .* after 60"):
        pruning.finish()
    with pytest.raises(UsageError, match="finished already"):
        pruning.finish()


def test_the_report_is_text_and_figures() -> None:
    pruning = mobilenet.prune(small_cnn(), sparsity=0.75, steps=STEPS)
    pruning.model.compile("sgd", LOSS)
    fit(pruning)
    report = pruning.report
    assert (report.method, report.steps, report.planned_steps) == ("MagnitudePruning", 16, 16)
    lines = str(report).splitlines()
    assert lines[0] == "MagnitudePruning: 16 of 16 steps, target reached"
    assert any("pointwise (pointwise): 75.0% zeros" in line for line in lines)


def test_frozen_layers_stay_frozen() -> None:
    model = small_cnn()
    for layer in model.layers[:3]:
        layer.trainable = False
    with pytest.warns(
        UserWarning, match="1 of the 3 kernels to quantize are frozen .* stem"
    ) as seen:
        training = mobilenet.quantize_aware(model, IMAGES, steps=STEPS)
    assert seen[0].filename == __file__  # the line of the user's call
    before = kernel(model, "stem")
    training.model.compile("adam", LOSS)
    fit(training)
    result = training.finish().float_model
    np.testing.assert_array_equal(kernel(result, "stem"), before)
    assert (kernel(result) != kernel(model)).any()


def test_pruning_frozen_kernels_is_a_warning() -> None:
    model = small_cnn()
    model.get_layer("pointwise").trainable = False
    match = "1 of the 1 kernels to prune are frozen .* pointwise"
    with pytest.warns(UserWarning, match=match) as seen:
        mobilenet.prune(model, steps=STEPS)
    assert seen[0].filename == __file__


def test_batch_norms_called_in_inference_mode_stay_there() -> None:
    """As in transfer learning: the base is called with `training=False` and then fine-tuned."""
    base = tf_keras.Sequential(
        [L.Input((SIZE, SIZE, 3)), L.Conv2D(8, 3), L.BatchNormalization(name="norm"), L.ReLU()]
    )
    source = L.Input((SIZE, SIZE, 3))
    x = L.GlobalAveragePooling2D()(base(source, training=False))
    model = tf_keras.Model(source, L.Dense(CLASSES, activation="softmax")(x))
    before = base.get_layer("norm").get_weights()
    for compression in (mobilenet.prune(model, steps=STEPS), start(model=model)):
        compression.model.compile("sgd", LOSS)
        fit(compression)
        result = compression.finish()
        norm = getattr(result, "float_model", result).get_layer("norm").get_weights()
        for now, old in zip(norm[2:], before[2:], strict=True):  # mean and variance
            np.testing.assert_array_equal(now, old)
        assert (norm[0] != before[0]).any()  # the gain is trained


class Subclassed(tf_keras.Model):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return inputs


def keras3_model() -> Any:
    import keras

    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(4, 3)])


BAD: dict[str, tuple[str, Any]] = {
    "Keras 3": ("model", lambda: mobilenet.prune(keras3_model(), steps=4)),
    "unbuilt": ("model", lambda: mobilenet.prune(tf_keras.Sequential([L.Dense(2)]), steps=4)),
    "subclassed": ("model", lambda: mobilenet.quantize_aware(Subclassed(), IMAGES, steps=4)),
    "not a model": ("model", lambda: mobilenet.prune("model.keras", steps=4)),
    "no steps": ("steps", lambda: start(steps=0)),
    "half a step": ("steps", lambda: mobilenet.prune(small_cnn(), steps=1.5)),  # type: ignore
    "all zero": ("sparsity", lambda: mobilenet.prune(small_cnn(), 1.0, steps=4)),
    "no number": ("sparsity", lambda: mobilenet.prune(small_cnn(), "half", steps=4)),  # type: ignore
    "no such layer": (
        "final_sparsity",
        lambda: mobilenet.prune(small_cnn(), {"nothing": 0.5}, steps=4),
    ),
    "both": (
        "sparsity",
        lambda: mobilenet.prune(small_cnn(), 0.5, steps=4, config=MagnitudePruning()),
    ),
    "a config of another kind": ("config", lambda: start(PostTraining())),
    "post-training": (
        "config",
        lambda: mobilenet.quantize_aware(small_cnn(), IMAGES, steps=4, config=PostTraining()),
    ),
    "channels without images": (
        "data",
        lambda: mobilenet.prune(small_cnn(), steps=4, config=ChannelPruning(round_to=1)),
    ),
    "shape": ("images", lambda: mobilenet.quantize_aware(small_cnn(), IMAGES[:, 1:], steps=4)),
    "pixels": (
        "images",
        lambda: mobilenet.quantize_aware(small_cnn(), 127.5 * IMAGES + 127.5, steps=4),
    ),
    "bytes": (
        "images",
        lambda: mobilenet.quantize_aware(small_cnn(), (IMAGES > 0).astype(np.uint8), steps=4),
    ),
    "NaN": ("images", lambda: mobilenet.quantize_aware(small_cnn(), np.nan * IMAGES, steps=4)),
    "no images": ("images", lambda: mobilenet.quantize_aware(small_cnn(), IMAGES[:0], steps=4)),
    "one image": ("images", lambda: mobilenet.quantize_aware(small_cnn(), IMAGES[0], steps=4)),
    "a name": ("images", lambda: mobilenet.quantize_aware(small_cnn(), "photos", steps=4)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_parameter(name: str) -> None:
    parameter, call = BAD[name]
    with pytest.raises(UsageError) as error:
        call()
    assert error.value.what == parameter, str(error.value)
    assert "\n" not in str(error.value)


def test_a_percentage_is_recognized() -> None:
    with pytest.raises(UsageError, match=r"sparsity: got 75, .*; did you mean 0\.75\?$"):
        mobilenet.prune(small_cnn(), sparsity=75, steps=4)
    with pytest.raises(UsageError, match=r"stem: got 50, .*; did you mean 0\.5\?$"):
        mobilenet.prune(small_cnn(), sparsity={"stem": 50}, steps=4)
    with pytest.raises(UsageError, match="below 1$"):
        mobilenet.prune(small_cnn(), sparsity=1.5, steps=4)


def test_no_steps_say_what_steps_are() -> None:
    with pytest.raises(UsageError, match="steps: got 0, .* epochs times batches an epoch"):
        start(steps=0)


def test_wrapped_models_of_tfmot_are_pruned_too() -> None:
    pruning = start(TfmotPruning({"pointwise": 0.5}))
    pruning.model.compile("sgd", LOSS)
    fit(pruning)
    assert zeros(pruning.finish()) == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize("policy", ["mixed_bfloat16"])
def test_mixed_precision_ends_in_float32(policy: str) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(tf_keras.mixed_precision.set_global_policy, "float32")
        tf_keras.mixed_precision.set_global_policy(policy)
        training = mobilenet.quantize_aware(small_cnn(), IMAGES, steps=STEPS)
        training.model.compile("adam", LOSS)
        fit(training)
        quantized = training.finish()
        assert tf_keras.mixed_precision.global_policy().name == policy
    for model in (quantized.model, quantized.float_model):
        assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    expected = training.model.predict(IMAGES, verbose=0)
    outputs = tf.nn.softmax(quantized.model(IMAGES)).numpy()
    assert np.abs(outputs - expected).max() < 0.05
