"""What is recorded of a stage, against numpy over all images at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import short_training
import small_models

from mobilenet.compression import method as methods
from mobilenet.configs.dataset import PREPROCESSING
from mobilenet.configs.pruning import (
    ChannelPruning,
    DnsPruning,
    MagnitudePruning,
    Pruning,
    TfmotPruning,
)
from mobilenet.configs.quantization import QuantizationAwareTraining
from mobilenet.models.graph import variables
from mobilenet.training import stage_data, stage_recorder

RNG = np.random.default_rng(3)
COUNT, CLASSES = 90, 7


def record(labels: np.ndarray, logits: np.ndarray, **options: object) -> stage_data.ScoredImages:
    """In batches of 8; image n has the gray value n."""
    recorder = stage_recorder.TestImageRecorder(PREPROCESSING["inception"], **options)  # type: ignore[arg-type]
    pixels = np.arange(len(labels), dtype=np.float32)[:, None, None, None]
    images = np.broadcast_to((pixels - 127.5) / 127.5, (len(labels), 10, 14, 3))
    for start in range(0, len(labels), 8):
        part = slice(start, start + 8)
        recorder(images[part], labels[part], logits[part])
    return recorder.result()


def test_the_worst_and_the_least_certain_images_of_all_batches_are_kept(tmp_path: Path) -> None:
    labels, logits = RNG.integers(0, CLASSES, COUNT), RNG.normal(0, 2, (COUNT, CLASSES))
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ordered = np.sort(likely, axis=1)
    found = record(labels, logits, shown=10)
    np.testing.assert_array_equal(found.predictions, likely.argmax(1))
    np.testing.assert_allclose(found.probabilities, ordered[:, -1], rtol=1e-5)
    np.testing.assert_allclose(found.margins, ordered[:, -1] - ordered[:, -2], rtol=1e-4)
    np.testing.assert_allclose(found.losses, -np.log(likely[np.arange(COUNT), labels]), rtol=1e-5)
    worst = np.argsort(likely[np.arange(COUNT), labels])[:10]
    uncertain = np.argsort(ordered[:, -1] - ordered[:, -2])[:10]
    np.testing.assert_array_equal(found.worst, worst)
    np.testing.assert_array_equal(found.uncertain, uncertain)
    np.testing.assert_array_equal(found.pixels[:, 0, 0, 0], [*worst, *uncertain])
    stage_data.save_scored(tmp_path, "train", found)
    again = stage_data.load_scored(tmp_path, "train")
    assert again is not None
    for name in ("labels", "losses", "worst", "pixels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_one_output_for_two_classes_and_several_labels_an_image() -> None:
    labels, logits = RNG.integers(0, 2, COUNT), RNG.normal(0, 2, (COUNT, 1))
    second = 1 / (1 + np.exp(-logits[:, 0]))
    found = record(labels, logits, activation="sigmoid")
    np.testing.assert_array_equal(found.predictions, second > 0.5)
    np.testing.assert_allclose(found.probabilities, np.maximum(second, 1 - second), rtol=1e-5)
    np.testing.assert_allclose(found.losses, -np.log(np.where(labels, second, 1 - second)), 1e-4)

    flags, logits = RNG.integers(0, 2, (COUNT, 3)), RNG.normal(0, 2, (COUNT, 3))
    likely = 1 / (1 + np.exp(-logits))
    found = record(flags, logits, activation="sigmoid")
    assert found.has_several_labels
    np.testing.assert_array_equal(found.predictions, likely > 0.5)
    losses = -np.log(np.where(flags, likely, 1 - likely)).mean(1)
    np.testing.assert_array_equal(found.worst, np.argsort(-losses)[:24])


def test_larger_images_are_reduced_and_stored_as_jpeg(tmp_path: Path) -> None:
    image = np.linspace(-1, 1, 192 * 96, dtype=np.float32).reshape(1, 192, 96, 1)
    pixels = stage_recorder.pixels_of(image, PREPROCESSING["inception"])
    assert pixels.shape == (1, 96, 48, 1)
    blocks = (127.5 + 127.5 * image.reshape(96, 2, 48, 2).mean((1, 3))).astype(int)
    assert np.abs(pixels[0, :, :, 0].astype(int) - blocks).max() <= 3
    images = stage_data.TrainingImages(pixels, np.array([4]))
    stage_data.save_training_images(tmp_path, images)
    assert (tmp_path / "report_data/augmented_images.jpg").is_file()
    again = stage_data.load_training_images(tmp_path)
    assert again is not None and again.labels.tolist() == [4]
    assert np.abs(again.pixels.astype(int) - pixels).max() < 12


def test_kernels_are_counted(tmp_path: Path) -> None:
    model = small_models.toy()
    kernel = variables.kernel(model.get_layer("c"))
    values = kernel.numpy()
    values[..., 2] = 0
    values[0, 0, 0, 0] = 0
    kernel.assign(values)
    kernels = stage_recorder.kernels_of(model)
    assert [kernel.role for kernel in kernels[:3]] == ["stem", "depthwise", "pointwise"]
    found = next(kernel for kernel in kernels if kernel.layer == "c")
    assert (found.weights, found.zeros) == (values.size, np.sum(values == 0))
    assert (found.outputs, found.zero_outputs) == (values.shape[-1], 1)
    assert sum(found.counts) == np.count_nonzero(values)
    np.testing.assert_allclose((found.low, found.high), (values.min(), values.max()), rtol=1e-6)
    stage_data.save_kernels(tmp_path, "train", kernels)
    assert stage_data.load_kernels(tmp_path, "train") == kernels


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (MagnitudePruning({"c": 0.5, "d": 0.25}, frequency=2, end=0.8), ("c", "d")),
        (TfmotPruning({"c": 0.5}, frequency=2, end=0.8), ("c",)),
        (
            DnsPruning(sparsity={"c": 0.5, "d": 0.25, "e": 0.0}, frequency=2, end=0.4, last=0.8),
            ("c", "d"),
        ),
    ],
)
def test_sparsity_is_that_of_the_kernels_and_ends_at_the_target(
    config: Pruning, layers: tuple[str, ...]
) -> None:
    method = methods.create(config, short_training.stage_context(10))
    model = method.apply(small_models.toy())
    seen = []

    def watch(step: int) -> None:
        kernels = {name: np.asarray(variables.kernel(model.layers[index[name]])) for name in layers}
        zeros = sum(np.sum(kernel == 0) for kernel in kernels.values())
        found = method.sparsity(step)
        assert found is not None
        assert found.now == pytest.approx(zeros / sum(k.size for k in kernels.values()), abs=1e-6)
        seen.append(found)

    names = [layer.name for layer in small_models.toy().layers]
    index = {name: names.index(name) for name in layers}
    short_training.train(model, method, 10, watch=watch)
    targets = [found.target for found in seen]
    assert targets == sorted(targets)
    shares = {"c": 0.5, "d": 0.25}
    sizes = {
        name: small_models.toy().get_layer(name).kernel.shape.num_elements() for name in layers
    }
    mean = sum(shares[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert seen[-1].target == pytest.approx(mean, abs=1e-6)
    assert seen[-1].now == pytest.approx(mean, abs=0.02)
    assert method.sparsity(0) is not None


def test_sparsity_of_channel_pruning_is_of_channels() -> None:
    config = ChannelPruning(ratio={"c": 0.5}, round_to=1)
    method = methods.create(config, short_training.stage_context(10))
    model = method.apply(small_models.toy())
    method.before_step(0)
    found = method.sparsity(10)
    thin = method.finalize(model)
    widths = [m.get_layer("c").output_shape[-1] for m in (thin, small_models.toy())]
    assert found is not None and found.now > 0
    assert widths == [4, 8]
    assert found.now == pytest.approx(found.target, abs=1e-6)


def test_methods_that_do_not_prune_have_no_sparsity() -> None:
    method = methods.create(QuantizationAwareTraining(), short_training.stage_context(10))
    assert method.sparsity(3) is None
