"""Weight sharing: uniform, codebook and tfmot's clusters, each rule against numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from short_training import stage_context, train
from small_models import inputs, randomize_batch_norm, toy, zero_fraction

from mobilenet import cli
from mobilenet.compression import method as methods
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8.cluster_preserving import Clusters
from mobilenet.compression.quantization.weight_sharing import codebook, uniform
from mobilenet.configs.weight_sharing import (
    CodebookQuantization,
    LinearQuantization,
    TfmotClustering,
)
from mobilenet.errors import UsageError
from mobilenet.models.graph import variables
from mobilenet.trainer import COMMAND

BITS = {"a": 5, "b": 5, "c": 4, "d": 4, "e": 3}
FIELDS = {"depthwise": 5, "pointwise": 4, "dense": 3}


def sparse() -> Any:
    """The toy model; half of the weights of its 1x1 kernels are zero."""
    model = randomize_batch_norm(toy(16))
    for name in "cde":
        kernel = model.get_layer(name).kernel
        values = kernel.numpy()
        kernel.assign(np.where(np.abs(values) > np.median(np.abs(values)), values, 0))
    return model


def kernel_of(model: Any, name: str) -> np.ndarray:
    return variables.kernel(model.get_layer(name)).numpy()


def fake_quantized(x: np.ndarray, low: float, high: float, first: int, last: int) -> np.ndarray:
    """As TensorFlow documents the operator: the range is shifted so that 0 is a level."""
    step = (high - low) / (last - first)
    zero_point = first - low / step
    zero_point = (
        first if zero_point < first else last if zero_point > last else np.floor(zero_point + 0.5)
    )
    bottom, top = (first - zero_point) * step, (last - zero_point) * step
    return np.floor((np.clip(x, bottom, top) - bottom) / step + 0.5) * step + bottom


def test_linear_levels_are_those_of_the_operator() -> None:
    draw = np.random.default_rng(0)
    kernel = draw.normal(0, 0.3, (3, 3, 8, 4)).astype(np.float32)
    parametrization = uniform.MinMax(kernel, 4)
    assert (parametrization.parameters["min"], parametrization.parameters["max"]) == (
        kernel.min(),
        kernel.max(),
    )
    weights = parametrization.weights(kernel, parametrization.parameters).numpy()
    np.testing.assert_allclose(
        weights, fake_quantized(kernel, kernel.min(), kernel.max(), 0, 15), atol=1e-6
    )
    assert len(np.unique(weights)) == 16


def test_linear_sign_mode_keeps_zeros_and_signs() -> None:
    draw = np.random.default_rng(1)
    kernel = draw.normal(0, 0.3, (1, 1, 30, 20)).astype(np.float32)
    kernel[np.abs(kernel) < 0.2] = 0
    parametrization = uniform.SignedMinMax(kernel, 4)
    used = np.abs(kernel[kernel != 0])
    assert (parametrization.parameters["min"], parametrization.parameters["max"]) == (
        used.min(),
        used.max(),
    )
    weights = parametrization.weights(kernel, parametrization.parameters).numpy()
    expected = np.sign(kernel) * fake_quantized(np.abs(kernel), used.min(), used.max(), 1, 7)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert (weights[kernel == 0] == 0).all()
    assert len(np.unique(np.abs(weights))) <= 2**3 - 1


@pytest.mark.parametrize("value", [0.0, 0.25, -0.25])
@pytest.mark.parametrize("kind", [uniform.MinMax, uniform.SignedMinMax])
def test_linear_takes_a_kernel_of_one_value(kind: Any, value: float) -> None:
    kernel = np.full((1, 1, 4, 4), value, np.float32)
    parametrization = kind(kernel, 4)
    np.testing.assert_allclose(
        parametrization.weights(kernel, parametrization.parameters), kernel, atol=1e-6
    )


def test_minimum_and_maximum_stay_in_order_and_magnitudes_above_zero() -> None:
    kernel = np.random.default_rng(1).normal(size=(1, 1, 4, 4)).astype(np.float32)
    for kind, low in ((uniform.MinMax, -3.0), (uniform.SignedMinMax, 0.0)):
        parameters = {"min": tf.Variable(-3.0), "max": tf.Variable(-4.0)}
        kind(kernel, 4).constrain(parameters)
        assert float(parameters["min"]) == low
        assert float(parameters["max"]) > low


def test_codebook_is_that_of_scikit_learn_without_the_zeros() -> None:
    from sklearn.cluster import KMeans

    kernel = np.random.default_rng(3).normal(size=(1, 1, 20, 10)).astype(np.float32)
    kernel[np.abs(kernel) < 0.5] = 0
    parametrization = codebook.Codebook(kernel, 3, seed=4)
    used = kernel[kernel != 0]
    expected = KMeans(7, n_init=10, random_state=4).fit(used.reshape(-1, 1))
    values, labels = parametrization.parameters["values"], parametrization.fixed["labels"]
    np.testing.assert_allclose(np.sort(values), np.sort(expected.cluster_centers_[:, 0]))
    nearest = np.abs(used[:, None] - values[None]).argmin(1)
    np.testing.assert_array_equal(labels[kernel != 0], nearest)
    weights = parametrization.weights(
        kernel, {**parametrization.parameters, **parametrization.fixed}
    ).numpy()
    halves = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(weights, np.where(kernel != 0, halves[labels], 0))


def test_even_cells_have_their_means_and_need_fewer_bits() -> None:
    kernel = np.random.default_rng(3).normal(size=(1, 1, 60, 50)).astype(np.float32)
    kernel[np.abs(kernel) < 0.8] = 0.0
    parametrization = codebook.Codebook(kernel, 4, cells="even")
    low, high = kernel.min(), kernel.max()
    shared = parametrization.weights(
        kernel, {**parametrization.parameters, **parametrization.fixed}
    ).numpy()
    for cell in range(15):
        least, most = (low + (high - low) * (cell + n) / 15 for n in (0, 1))
        inside = (kernel >= least) & ((kernel < most) | (cell == 14)) & (kernel != 0)
        if inside.any():
            np.testing.assert_allclose(shared[inside], kernel[inside].mean(), rtol=6e-4)
    assert np.array_equal(shared == 0, kernel == 0)
    assert 1 < len(np.unique(shared)) <= 16
    rival = codebook.Codebook(kernel, 4)
    assert bits_of(shared) < 0.95 * bits_of(
        rival.weights(kernel, {**rival.parameters, **rival.fixed})
    )


def bits_of(kernel: Any) -> float:
    """Zeroth-order entropy of the values that are not zero."""
    kernel = np.asarray(kernel)
    counts = np.unique(kernel[kernel != 0], return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def test_few_values_are_their_own_codebook() -> None:
    kernel = np.array([[0.0, 0.5, -1.0], [0.5, 2.0, 0.0]], np.float32)
    parametrization = codebook.Codebook(kernel, 2)
    np.testing.assert_array_equal(np.sort(parametrization.parameters["values"]), [-1, 0.5, 2])
    np.testing.assert_array_equal(
        parametrization.weights(kernel, {**parametrization.parameters, **parametrization.fixed}),
        kernel,
    )
    nothing = codebook.Codebook(np.zeros((2, 2), np.float32), 2)
    weights = nothing.weights(np.zeros((2, 2)), {**nothing.parameters, **nothing.fixed})
    np.testing.assert_array_equal(weights, np.zeros((2, 2)))


def test_a_value_takes_the_sum_of_its_members_gradients() -> None:
    labels, mask = np.array([0, 1, 1, 0, 2, 0]), np.array([1, 1, 1, 0, 1, 1], np.float32)
    upstream = np.array([1, 2, 3, 100, 5, 7], np.float32)
    table = tf.Variable([0.5, -0.5, 1.0, 9.0])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(codebook.spread(table, labels, mask) * upstream)
    gradient = tf.convert_to_tensor(tape.gradient(value, table))
    np.testing.assert_array_equal(gradient, [1 + 7, 2 + 3, 5, 0])


def test_values_are_those_of_float16_where_it_has_them() -> None:
    table = tf.constant([1 / 3, 1e-9, -1e6, 1e-6])
    labels = np.arange(4)
    weights = codebook.spread(table, labels, np.ones(4, np.float32)).numpy()
    near = [np.float32(np.float16(1 / 3)), 1e-9, -1e6, np.float32(np.float16(1e-6))]
    np.testing.assert_array_equal(weights, np.array(near, np.float32))


@functools.cache
def trained(kind: Any) -> tuple[Any, Any, Any, Any]:
    """The model before, the method, the trained model, and the finalized one."""
    model = sparse()
    method = methods.create(kind(**FIELDS, momentum=0.5), stage_context(4))
    method.check(model)
    wrapped = method.apply(model)
    before = method.finalize(wrapped)
    train(wrapped, method, 4, rate=0.01)
    return before, method, wrapped, method.finalize(wrapped)


OURS = [LinearQuantization, CodebookQuantization]


@pytest.mark.parametrize("kind", OURS)
def test_only_the_parameters_of_the_kernels_train(kind: Any) -> None:
    before, method, wrapped, plain = trained(kind)
    model = sparse()
    assert all(type(layer).__module__.startswith("tf_keras.") for layer in plain.layers)
    for name in BITS:
        wrapper = wrapped.get_layer(f"coded_{name}")
        np.testing.assert_array_equal(kernel_of(model, name), variables.kernel(wrapper.layer))
    assert any(np.any(kernel_of(before, name) != kernel_of(plain, name)) for name in BITS)
    for layer in model.layers:
        for name, value in variables.named(layer).items():
            now = variables.named(plain.get_layer(layer.name))[name].numpy()
            if name in ("gamma", "beta", "bias"):
                np.testing.assert_array_equal(value, now)
            elif name.startswith("moving_"):
                assert np.any(value.numpy() != now)
    assert wrapped.get_layer("c_norm").momentum == 0.5
    assert plain.get_layer("c_norm").momentum == 0.8
    assert int8_saving.ranges_of(wrapped) is None


@pytest.mark.parametrize("kind", OURS)
def test_the_plain_model_computes_as_the_trained_one_and_has_few_values(kind: Any) -> None:
    _, method, model, plain = trained(kind)
    np.testing.assert_allclose(
        model(inputs(4), training=False), plain(inputs(4), training=False), atol=1e-5
    )
    start = sparse()
    for name, bits in BITS.items():
        kernel = kernel_of(plain, name)
        assert len(np.unique(kernel[kernel != 0])) <= 2**bits - (name not in "ab")
        assert len(np.unique(kernel)) <= 2**bits
        assert (kernel[kernel_of(start, name) == 0] == 0).all()
        assert not np.signbit(kernel[kernel == 0]).any()  # -0.0 would be a value of its own
    notes = {line.split(":")[0]: line for line in method.notes(model)}
    count = len(np.unique(kernel_of(plain, "c")))
    assert notes["c"].startswith(f"c: 4 bits, {count} distinct weights, ")


def test_members_of_a_cluster_stay_together() -> None:
    before, _, model, plain = trained(CodebookQuantization)
    for name in "bcde":
        old, new = kernel_of(before, name), kernel_of(plain, name)
        for value in np.unique(old):
            assert len(np.unique(new[old == value])) == 1
        assert np.any(old != new)
    clusters = Clusters({name: variables.kernel(plain.get_layer(name)) for name in "cd"})
    assert clusters.counts == {
        n: len(np.unique(kernel_of(plain, n))) for n in "cd"
    }  # QAT keeps them
    assert {v.name.split("/")[-1] for v in model.get_layer("coded_c").trainable_weights} == {
        "values:0"
    }


def test_tfmots_clusters_leave_few_values_and_keep_zeros() -> None:
    _, method, model, plain = trained(TfmotClustering)
    start = sparse()
    for name in "acde":
        kernel = kernel_of(plain, name)
        assert len(np.unique(kernel)) <= 2 ** BITS[name]
        assert (kernel[kernel_of(start, name) == 0] == 0).all()
        assert not np.signbit(kernel[kernel == 0]).any()
    assert zero_fraction(kernel_of(plain, "b")) == 0
    assert "b: tfmot does not cluster it" in method.notes(model)
    np.testing.assert_allclose(
        model(inputs(4), training=False), plain(inputs(4), training=False), atol=1e-5
    )


def test_parameters_stay_float32_under_mixed_precision() -> None:
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        method = methods.create(CodebookQuantization(**FIELDS), stage_context(2))
        model = method.apply(toy())
        assert np.isfinite(train(model, method, 2))
        with pytest.raises(UsageError, match="`quantization=codebook` works under mixed precision"):
            methods.create(TfmotClustering(), stage_context(2)).check(toy())
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert model.get_layer("coded_c").parameters["values"].dtype == tf.float32
    assert len(np.unique(kernel_of(method.finalize(model), "c"))) <= 2**4


def test_bits_default_to_those_of_the_kind_before() -> None:
    for fields, expected in (
        ({}, (8, 8, 8)),
        ({"depthwise": 6}, (6, 6, 6)),
        ({"pointwise": 6}, (8, 6, 6)),
        ({"depthwise": 6, "dense": 5}, (6, 6, 5)),
    ):
        config = CodebookQuantization(**fields)
        assert tuple(map(config.bits, ("depthwise", "pointwise", "dense"))) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["codebook", "--num_bits_depthwise=1"], "--num_bits_depthwise: got 1, expected a whole"),
        (["codebook", "--num_bits_dense=9"], "--num_bits_dense: got 9, expected a whole number"),
        (["linear", "--num_bits_pointwise=2"], "at least 3, one of which is the sign"),
        (["linear", "--batch_norm_momentum=2"], "--batch_norm_momentum: got 2.0"),
        (["codebook", "--kmeans_restarts=0"], "--kmeans_restarts: got 0"),
        (["codebook", "--codebook_cells=wide"], "--codebook_cells: got 'wide', expected one of"),
        (["linear", "--kmeans_restarts=3"], "linear has no such flag"),
        (["qat", "--num_bits_dense=5"], "qat has no such flag"),
    ],
)
def test_invalid_input_is_one_line(args: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        cli.run_config(COMMAND.parse([f"--quantization={args[0]}", *args[1:]]))
    assert message in str(caught.value)


def test_flags_pick_the_method() -> None:
    args = ["--num_bits_depthwise=8", "--num_bits_pointwise=6", "--num_bits_dense=5"]
    config = cli.run_config(COMMAND.parse(["--quantization=codebook", *args]))
    assert config.quantization == CodebookQuantization(8, 6, 5)
    assert type(config).from_json(config.to_json()) == config
