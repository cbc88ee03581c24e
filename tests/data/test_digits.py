"""The embedded digits against scikit-learn's, and their enlargement against TensorFlow's resize."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mobilenet
from mobilenet import data
from mobilenet.configs import dataset
from mobilenet.data.sources import digits
from mobilenet.errors import UsageError

DIGITS = dataset.get("digits").replace(data_dir="photos")


def test_images_and_labels_are_scikit_learns() -> None:
    ours, theirs = digits.load(), load_digits()
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.target)
    assert ours.images.dtype == ours.labels.dtype == ours.split.dtype == np.uint8


def test_split_is_the_documented_one() -> None:
    target = load_digits().target
    rest, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0, stratify=target)
    train, validation = train_test_split(
        rest, test_size=0.125, random_state=0, stratify=target[rest]
    )
    ours = digits.load()
    np.testing.assert_array_equal(ours.indices("train"), np.sort(train))
    np.testing.assert_array_equal(ours.indices("validation"), np.sort(validation))
    np.testing.assert_array_equal(ours.indices("test"), np.sort(test))
    assert (len(train), len(validation), len(test)) == (1257, 180, 360)


@pytest.mark.parametrize("size", [32, 64, (96, 50), 1, 5])
def test_enlargement_is_tensorflows_bilinear_resize(size: int | tuple[int, int]) -> None:
    import tensorflow as tf

    ours = digits.load()
    side = (size, size) if isinstance(size, int) else size
    cells = ours.images[:50, ..., None].astype(np.float32) * (255 / 16)
    expected = tf.image.resize(cells, side, "bilinear", antialias=False).numpy()
    enlarged = digits.enlarge(ours.images[:50], size)
    assert enlarged.shape == (50, *side, 3) and enlarged.dtype == np.uint8
    assert np.abs(enlarged.astype(np.float32) - expected).max() <= 0.5001
    np.testing.assert_array_equal(enlarged[..., 0], enlarged[..., 2])
    np.testing.assert_array_equal(ours.image(7, size, channels=1), enlarged[7, ..., :1])


def test_full_ink_is_white_and_no_ink_black() -> None:
    cells = np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 16, np.uint8)])
    assert np.unique(digits.enlarge(cells, 33)[0]).tolist() == [0]
    assert np.unique(digits.enlarge(cells, 33)[1]).tolist() == [255]


def test_file_is_small() -> None:
    assert (Path(mobilenet.__file__).parent / "digits.npz").stat().st_size < 100_000


def test_a_data_folder_for_the_digits_is_refused() -> None:
    """Photos that lie there would be ignored for digits, without a message."""
    for read in (lambda: digits.load("photos"), lambda: data.describe(DIGITS)):
        with pytest.raises(UsageError, match=r"^data_dir: got 'photos'.*`dataset_name="):
            read()


def test_bad_split_and_size_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean train"):
        digits.load().indices("trian")
    with pytest.raises(UsageError, match="image size"):
        digits.enlarge(np.zeros((1, 8, 8), np.uint8), 0)


def test_digits_and_class_folders_need_no_tensorflow() -> None:
    code = "import sys, mobilenet.data.sources.digits as d, mobilenet.data.sources.image_folder; "
    code += (
        "d.load().image(0, 64); sys.exit('tensorflow' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
