"""The learning-rate finder: its curve against a training by hand, its suggestion, its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from short_training import CONFIG, batches, make_job  # noqa: E402
from small_models import two_layer_model  # noqa: E402

import mobilenet  # noqa: E402
from mobilenet import trainer  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import engine  # noqa: E402
from mobilenet.training.optimization.rate_finder import RateCurve, RateSearch  # noqa: E402


def test_losses_are_those_of_a_training_at_these_rates(tmp_path: Path) -> None:
    search = RateSearch(steps=12, lowest=1e-3, highest=0.5)
    config = CONFIG.replace(optimizer_name="momentum", label_smoothing=0.0, lr=9.0)
    curve = engine.find_rate(two_layer_model(), None, make_job(tmp_path, config), search)
    np.testing.assert_allclose(curve.rates, 1e-3 * 500 ** (np.arange(12) / 11), rtol=1e-6)
    model, expected = two_layer_model(), []
    optimizer = tf_keras.optimizers.SGD(momentum=config.op_momentum, jit_compile=False)
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for rate, (images, labels) in zip(curve.rates, batches(0).take(12), strict=True):
        optimizer.learning_rate = rate
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        expected.append(float(loss))
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-4)
    assert not list(tmp_path.iterdir())


def test_the_suggestion_is_between_the_begin_of_the_fall_and_the_lowest_loss(
    tmp_path: Path,
) -> None:
    rates = np.geomspace(1e-6, 1.0, 61)
    exponent = np.log10(rates)
    losses = np.interp(exponent, [-6, -4, -2, -1, 0], [2.0, 2.0, 0.5, 0.6, 9.0])
    curve = RateCurve("train", tuple(rates), tuple(losses))
    assert 1e-4 < curve.suggestion < 1e-2
    assert f"suggested peak learning rate: {curve.suggestion:g}" in str(curve)
    assert max(map(len, str(curve).splitlines())) <= 80
    curve.save_plot(tmp_path / "curve.png")
    from PIL import Image

    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (640, 360)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3}, "steps: got 3, expected a whole number at least 10"),
        ({"lowest": 0.0}, "lowest: got 0.0, expected a number above 0"),
        ({"highest": 1e-9}, "highest: got 1e-09, expected a number above 1e-06"),
    ],
)
def test_rates_that_do_not_rise_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        RateSearch(**values)
    assert str(error.value).startswith(message)


def test_a_loss_that_only_rises_suggests_nothing() -> None:
    curve = RateCurve("train", (1e-3, 1e-2, 1e-1), (1.0, 2.0, 3.0))
    with pytest.raises(UsageError, match="expected rates at which the loss falls"):
        _ = curve.suggestion


def test_the_command_prints_draws_and_leaves_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--image_size=32", "--width_multiplier=0.25", "--batch_size=16", "--lr=0.1")
    trainer.run(["--find_lr", f"--model_dir={tmp_path}/run", *flags])
    text = capsys.readouterr().out
    assert "suggested peak learning rate: " in text
    assert [path.name for path in tmp_path.iterdir()] == ["run_lr_finder.png"]


def test_python_finds_a_rate_for_a_later_stage_of_a_model() -> None:
    with pytest.raises(UsageError, match="^stages: got 'convert', expected a first stage that tr"):
        mobilenet.find_learning_rate(
            "digits", width_multiplier=0.25, image_size=32, stages=("convert",)
        )
