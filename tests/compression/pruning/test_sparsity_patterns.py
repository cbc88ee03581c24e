"""N:M along input channels and whole blocks: against numpy, through QAT, and in the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from short_training import stage_context, train
from small_models import INCEPTION, inputs, randomize_batch_norm, toy, zero_fraction

from mobilenet.compression import method as methods
from mobilenet.compression.pruning.unstructured import sparsity_patterns
from mobilenet.compression.quantization.int8 import saving as int8_saving
from mobilenet.compression.quantization.int8 import scheme
from mobilenet.configs.pruning import MagnitudePruning
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.errors import UsageError
from mobilenet.export import tflite_converter
from mobilenet.models.graph import variables
from mobilenet.tflite import model as tflite_model

SHAPES = [(1, 1, 12, 5), (3, 3, 8, 2), (16, 3)]


def kernel_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mask_of(kernel: np.ndarray, share: float, **fields: Any) -> np.ndarray:
    rule = sparsity_patterns.mask_rule(MagnitudePruning(**fields))
    mask = rule(tf.constant(kernel), tf.constant(share, tf.float32))
    assert mask.dtype == tf.float32
    assert mask.shape == kernel.shape
    return mask.numpy()


def groups_of(array: np.ndarray, size: int) -> np.ndarray:
    """`[groups, size]`: neighbors along the input axis, which is the last but one."""
    return np.moveaxis(array, -2, -1).reshape(-1, size)


def split(kernel: np.ndarray, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each group: what remains at the full pattern, and the magnitude that it loses."""
    groups = np.abs(groups_of(kernel, size))
    rank = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1, kind="stable")
    return rank < count, np.where(rank < count, 0, groups).sum(axis=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("count", "size"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_of_every_group_the_largest_stay(shape: tuple[int, ...], count: int, size: int) -> None:
    kernel = kernel_of(shape)
    mask = mask_of(kernel, 1 - count / size, pattern=f"{count}:{size}")
    np.testing.assert_array_equal(groups_of(mask, size) == 1, split(kernel, count, size)[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.45])
def test_early_on_the_groups_that_lose_least_have_the_pattern(
    shape: tuple[int, ...], share: float
) -> None:
    kernel = kernel_of(shape)
    stay, loss = split(kernel, 2, 4)
    count = int(np.round(len(loss) * share / 0.5))
    first = np.argsort(loss)[:count]
    expected = np.ones_like(stay)
    expected[first] = stay[first]
    mask = mask_of(kernel, share, pattern="2:4")
    np.testing.assert_array_equal(groups_of(mask, 4) == 1, expected)


def test_a_larger_share_removes_more_inside_the_pattern() -> None:
    kernel = kernel_of((1, 1, 64, 32))
    mask = mask_of(kernel, 0.75, pattern="2:4")
    assert zero_fraction(mask) == 0.75
    stay, _ = split(kernel, 2, 4)
    assert not np.any(groups_of(mask, 4).astype(bool) & ~stay)
    remaining = np.sort(np.abs(groups_of(kernel, 4)[stay]))[-kernel.size // 4 :]
    np.testing.assert_array_equal(np.sort(np.abs(kernel[mask == 1])), remaining)


def test_equal_magnitudes_keep_to_the_pattern() -> None:
    mask = mask_of(np.ones((1, 1, 8, 3), np.float32), 0.5, pattern="2:4")
    assert (groups_of(mask, 4).sum(axis=1) == 2).all()


@pytest.mark.parametrize("fields", [{"pattern": "2:4"}, {"pattern": "block"}])
def test_a_sparser_start_never_regrows(fields: dict[str, str]) -> None:
    kernel = kernel_of((1, 1, 16, 8))
    kernel[:, :, :12] = 0
    kernel[0, 0, 13, 1] = 0
    for share in (0.0, 0.25, 0.5):
        mask = mask_of(kernel, share, **fields)
        assert not np.any(mask[kernel == 0])


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75])
def test_blocks_are_removed_by_their_sum(rows: int, columns: int, share: float) -> None:
    kernel = kernel_of((1, 1, 12, 8))
    blocks = np.abs(kernel[0, 0]).reshape(12 // rows, rows, 8 // columns, columns).sum((1, 3))
    count = int(np.round(blocks.size * share))
    remaining = np.ones(blocks.size, bool)
    remaining[np.argsort(blocks, axis=None)[:count]] = False
    expected = remaining.reshape(blocks.shape).repeat(rows, 0).repeat(columns, 1)
    mask = mask_of(kernel, share, pattern="block", block_size=f"{rows}x{columns}")
    np.testing.assert_array_equal(mask[0, 0] == 1, expected)
    dense = mask_of(kernel[0, 0], share, pattern="block", block_size=f"{rows}x{columns}")
    np.testing.assert_array_equal(dense == 1, expected)


def notes(**fields: Any) -> list[str]:
    method = methods.create(MagnitudePruning(frequency=1, **fields), stage_context(4))
    model = method.apply(toy())
    train(model, method, 4, eager=True)
    return method.notes(model)


def test_layers_that_cannot_take_the_pattern_are_listed_with_the_reason() -> None:
    """tfmot gives the stem's three channels a third of zeros, and refuses blocks in any conv."""
    assert notes(final_sparsity={".*": 0.5}, pattern="2:4") == [
        "a (stem): dense, matches .*, but 3 input channels are no multiple of 4",
        "b (depthwise): dense, matches .*, but 2:4 needs more than one input channel per output",
        "c (pointwise): 50.0% zeros, matches .*",
        "d (pointwise): 50.0% zeros, matches .*",
        "e (classifier): 50.0% zeros, matches .*",
    ]
    lines = notes(final_sparsity={".*": 0.5}, pattern="block", block_size="2x16")
    assert lines[0].endswith("but blocks need a 1x1 kernel")
    assert lines[2].endswith("but 8 output channels are no multiple of 16")
    assert lines[3].startswith("d (pointwise): 50.0% zeros")


def test_where_nothing_can_take_the_pattern_it_is_an_error() -> None:
    config = MagnitudePruning({"stem": 0.5, "depthwise": 0.5}, pattern="2:4")
    with pytest.raises(UsageError, match="3 input channels are no multiple of 4") as error:
        methods.create(config, stage_context()).check(toy())
    assert "\n" not in str(error.value)


def test_the_share_of_groups_grows_and_at_the_end_all_have_the_pattern() -> None:
    config = MagnitudePruning({"c": 0.5}, pattern="2:4", frequency=2, end=0.8)
    method = methods.create(config, stage_context(15))
    model = method.apply(toy())
    kernel = variables.kernel(model.get_layer("c"))
    seen = []

    def watch(step: int) -> None:
        seen.append(np.mean((groups_of(kernel.numpy(), 4) == 0).sum(axis=1) >= 2))

    train(model, method, 15, watch=watch)
    assert seen == sorted(seen)
    assert 0 < seen[2] < 1
    assert seen[method.timing.end - 1 :] == [1] * 4
    assert zero_fraction(kernel) == 0.5


def test_the_pattern_holds_through_qat_and_in_the_file() -> None:
    """The file's kernels are `[outputs, 1, 1, inputs]`."""
    config = MagnitudePruning({"pointwise": 0.5}, pattern="2:4", frequency=1)
    method = methods.create(config, stage_context(4))
    model = method.apply(randomize_batch_norm(toy()))
    train(model, method, 4, rate=0.001)
    pruned = method.finalize(model)
    before = {name: variables.kernel(pruned.get_layer(name)).numpy() for name in "cd"}
    method = methods.create(QuantizationAwareTraining(calibration_images=32), stage_context(8))
    model = method.apply(pruned)
    train(model, method, 8, rate=0.001)
    ranges, plain = scheme.get_ranges(model), method.finalize(model)
    for name, old in before.items():
        np.testing.assert_array_equal(plain.get_layer(name).kernel.numpy() == 0, old == 0)
    wrapped = scheme.wrap(plain, INCEPTION)
    scheme.set_ranges(wrapped, ranges)
    int8_saving.prepare_export(wrapped)
    assert np.isfinite(wrapped(inputs(2), training=False)).all()
    for data in (
        tflite_converter.int8_flatbuffer(wrapped),
        tflite_converter.float_flatbuffer(pruned),
    ):
        content = tflite_model.read(data)
        convs = [op for op in content.operators if op.name == "CONV_2D"]
        kernels = [content.tensors[op.inputs[1]] for op in convs]
        for tensor, channels in zip(kernels[1:3], (8, 16), strict=True):
            assert tuple(tensor.shape) == (channels, 1, 1, 8)
            groups = np.asarray(tensor.data).reshape(-1, 4)
            assert ((groups == 0).sum(axis=1) >= 2).all()
            assert np.mean(groups == 0) < 0.7
