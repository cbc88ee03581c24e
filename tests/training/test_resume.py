"""A run that is interrupted: it continues from any step to the same bits, from damaged states too.

The models have dropout, whose random numbers must continue as well.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402
from short_training import (  # noqa: E402
    CONFIG,
    STEPS,
    Recorder,
    Signal,
    batches,
    make_job,
    stage_context,
)
from small_models import (  # noqa: E402
    CLASSES,
    dropout_model,
    inputs,
    randomize_batch_norm,
    toy,
    two_layer_model,
)

from mobilenet.compression import method as methods  # noqa: E402
from mobilenet.configs.base import Config  # noqa: E402
from mobilenet.configs.pruning import (  # noqa: E402
    ChannelPruning,
    DnsPruning,
    MagnitudePruning,
)
from mobilenet.configs.quantization import QuantizationAwareTraining  # noqa: E402
from mobilenet.configs.training import TrainConfig  # noqa: E402
from mobilenet.configs.weight_sharing import (  # noqa: E402
    CodebookQuantization,
    LinearQuantization,
    TfmotClustering,
)
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.training import engine, random_state  # noqa: E402
from mobilenet.training.resume import Checkpoints  # noqa: E402

SEED = 7
RECIPE = CONFIG.replace(keep_best=True)


def job(folder: Path, *callbacks: Any, config: TrainConfig = RECIPE, **fields: Any) -> engine.Job:
    made = make_job(folder, config, *callbacks)
    return dataclasses.replace(made, seed=SEED, **fields)


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("state-*"))


def fit(folder: Path, *callbacks: Any, **fields: Any) -> tuple[list[Any], list[Any]]:
    model = dropout_model()
    rows = engine.fit(model, None, job(folder, *callbacks, **fields))
    return model.get_weights(), [{**row, "seconds": 0} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """Weights and rows of a run that was never interrupted."""
    return fit(tmp_path_factory.mktemp("whole"))


def assert_same(one: tuple[list[Any], list[Any]], other: tuple[list[Any], list[Any]]) -> None:
    assert one[1] == other[1]
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def default_signals() -> Iterator[None]:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        assert signal.getsignal(number) is handler


@pytest.mark.parametrize("step", [1, 7, STEPS, 2 * STEPS, 4 * STEPS])
def test_after_ctrl_c_at_any_step_the_run_ends_with_the_same_bits(
    step: int, tmp_path: Path, whole: Any, default_signals: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Signal(step))
    assert states(tmp_path)[-1] == f"state-{(step - 1) // STEPS:05}-{step:010}"
    watch = Recorder()
    assert_same(fit(tmp_path, watch), whole)
    assert len(watch.weights) == 4 * STEPS - step  # no step is done twice
    assert [row["epoch"] for row in watch.logs] == [*range((step - 1) // STEPS + 1, 5)]


def test_dropout_matters_here(tmp_path: Path, whole: Any) -> None:
    """Another seed of dropout alone gives other weights: the tests would see a lost generator."""
    model = dropout_model()
    engine.fit(model, None, dataclasses.replace(job(tmp_path), seed=SEED + 1))
    assert not np.array_equal(model.get_weights()[0], whole[0][0])


KILLED = """
import signal, sys
from pathlib import Path
from short_training import Signal
from test_resume import fit
fit(Path(sys.argv[1]), Signal(8, signal.SIGKILL), checkpoint_minutes=1e-9)
"""


def test_after_sigkill_another_process_ends_with_the_same_bits(tmp_path: Path, whole: Any) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert states(tmp_path)[-1] == "state-00001-0000000007"
    assert_same(fit(tmp_path), whole)


def validation_that(act: Callable[[], None]) -> Any:
    """The validation batches, with something that happens between them."""

    def generate() -> Iterator[Any]:
        for number, batch in enumerate(batches(100).take(2)):
            if number:
                act()
            yield batch

    class Data:
        def __iter__(self) -> Iterator[Any]:
            return generate()

    return Data()


def test_ctrl_c_during_validation_ends_it_and_loses_no_step(
    tmp_path: Path, whole: Any, default_signals: None
) -> None:
    interrupted = validation_that(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, validation=interrupted)
    assert states(tmp_path) == [f"state-00000-{STEPS:010}"]
    watch = Recorder()
    assert_same(fit(tmp_path, watch), whole)
    assert (len(watch.weights), len(watch.logs)) == (3 * STEPS, 4)


def test_a_second_signal_ends_at_once(tmp_path: Path, default_signals: None) -> None:
    class Impatient(tf_keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Impatient())
    assert not states(tmp_path)


def test_the_handler_of_the_process_gets_the_signal_after_the_state_is_saved(
    tmp_path: Path,
) -> None:
    seen: list[Any] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(states(tmp_path)))
    try:
        with pytest.raises(SystemExit) as ended:
            fit(tmp_path, Signal(2, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert seen == [["state-00000-0000000002"]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states of a run that was interrupted in its third epoch."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.raises(KeyboardInterrupt):
        fit(folder, Signal(12))
    assert states(folder) == [f"state-{epoch:05}-{step:010}" for epoch, step in PARTS]
    return folder


PARTS = ((1, 5), (2, 10), (2, 12))


def copy_of(saved: Path, folder: Path) -> Path:
    for path in saved.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("variables.data-00000-of-00001", lambda path: path.write_bytes(path.read_bytes()[:100])),
        ("variables.data-00000-of-00001", flip),
        ("variables.data-00000-of-00001", Path.unlink),
        ("variables.index", flip),
        ("position.json", flip),
        ("checksums.json", flip),
        ("checksums.json", Path.unlink),
    ],
)
def test_damage_of_any_file_is_seen(
    name: str,
    damage: Callable[[Path], Any],
    saved: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = copy_of(saved, tmp_path)
    damage(folder / states(folder)[-1] / name)
    assert Checkpoints(folder, model=dropout_model()).restore().step == 10
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{folder / 'state-00002-0000000012'} is damaged (")
    assert name in caplog.messages[0] or name == "checksums.json"


def test_a_damaged_state_falls_back_to_the_one_before(
    saved: Path, tmp_path: Path, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With one state kept as well: the damaged one is not the one that stays."""
    folder = copy_of(saved, tmp_path)
    flip(folder / states(folder)[-1] / "variables.index")
    with caplog.at_level(logging.INFO, "mobilenet"), pytest.raises(KeyboardInterrupt):
        fit(folder, Signal(1), keep_checkpoints=1)
    assert caplog.messages[1] == "train: continues after epoch 2 of 4"
    assert states(folder) == ["state-00002-0000000011"]
    assert_same(fit(folder), whole)


def test_damaged_states_alone_are_one_line(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    for name in states(folder):
        flip(folder / name / "variables.index")
    with pytest.raises(UsageError, match="every one is damaged; remove this folder to start"):
        fit(folder)
    assert len(states(folder)) == 3


def test_states_of_version_0_1_are_refused_in_one_line(tmp_path: Path) -> None:
    tf.train.CheckpointManager(tf.train.Checkpoint(), str(tmp_path), 2).save()
    with pytest.raises(UsageError, match="state of this version.*; remove this folder to start"):
        fit(tmp_path)


def test_only_the_newest_states_remain(tmp_path: Path) -> None:
    fit(tmp_path, keep_checkpoints=2)
    assert states(tmp_path) == ["state-00003-0000000015", "state-00004-0000000020"]
    Checkpoints(tmp_path).clear()
    assert not tmp_path.exists()


def test_the_state_of_another_model_is_refused_with_its_path(saved: Path) -> None:
    source = tf_keras.layers.Input((6, 6, 2))
    other = tf_keras.Model(
        source, tf_keras.layers.Dense(CLASSES)(tf_keras.layers.Flatten()(source))
    )
    with pytest.raises(UsageError, match="state-00002.*expected the state of this stage.*`overwr"):
        engine.fit(other, None, job(saved))


def test_epochs_of_another_length_are_refused(saved: Path) -> None:
    with pytest.raises(UsageError, match="epochs of 3 steps; the data have changed"):
        fit(saved, steps_per_epoch=3)


def test_a_full_disk_is_one_line_and_the_states_before_remain(
    saved: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(saved, tmp_path)
    before = states(folder)

    def full(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        Path(f"{path}.index").write_bytes(b"half")
        raise tf.errors.ResourceExhaustedError(
            None, None, f"{path}; No space left on device [Op:SaveV2]"
        )

    with monkeypatch.context() as patch, pytest.raises(UsageError) as error:
        patch.setattr(tf.train.Checkpoint, "write", full)
        fit(folder)
    assert "(No space left on device); free space" in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert_same(fit(folder), whole)


SURGERY = DnsPruning(frequency=2, probabilities=(1.0,), boundaries=(), lower=0.95, upper=1.02)
CHANNELS = ChannelPruning(round_to=1, frequency=2, schedule="polynomial", end=0.8)
QUANTIZED = QuantizationAwareTraining(calibration_images=8, freeze=0.5)
BITS = {"depthwise": 5, "pointwise": 4, "dense": 4}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MagnitudePruning({"pointwise": 0.5}, frequency=2), id="magnitude"),
        pytest.param(
            ChannelPruning(round_to=1, frequency=2, schedule="polynomial", end=0.8), id="channel"
        ),
        pytest.param(QuantizationAwareTraining(calibration_images=8, freeze=0.5), id="qat"),
        pytest.param(SURGERY, id="dns"),
        pytest.param(CodebookQuantization(**BITS), id="codebook"),
        pytest.param(LinearQuantization(**BITS), id="linear", marks=pytest.mark.slow),
        pytest.param(TfmotClustering(**BITS), id="cluster", marks=pytest.mark.slow),
    ],
)
def test_a_killed_stage_resumes_to_the_same_model(config: Config, tmp_path: Path) -> None:
    """Dense kernels, masks, thresholds, parameters, labels and counts are in the resume state."""
    recipe = TrainConfig(epochs=2, batch_size=8, optimizer_name="adam", lr=0.03, ma_decay_rate=0.5)
    images = inputs(40, seed=5)
    labels = (images[:, :, :, 0].mean((1, 2)) > 0).astype(np.int32)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    start = randomize_batch_norm(toy())

    def fit(name: str, *callbacks: Any) -> tuple[Any, Any]:
        method = methods.create(config, stage_context(10))
        model = method.apply(start)
        job = engine.Job(
            "prune",
            recipe,
            5,
            lambda done: data.repeat().skip(done),
            data,
            CLASSES,
            tmp_path / name,
            callbacks,
        )
        engine.fit(model, method, job)
        return method.finalize(model), method

    whole, method = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("cut", Signal(4))
    resumed, again = fit("cut")
    moved = 0.0
    for one, other, old in zip(whole.weights, resumed.weights, start.weights, strict=True):
        np.testing.assert_array_equal(one, other)
        if one.shape == old.shape:  # not so where channels are pruned
            moved = max(moved, float(tf.reduce_max(tf.abs(one - old))))
    assert moved > 0.01
    assert method.report() == again.report()
    assert method.notes(whole) == again.notes(resumed)


def poisoned(start: int) -> Any:
    """NaN in the images of one batch, the eighth."""
    numbered = tf.data.Dataset.zip((tf.data.Dataset.counter(start + 1), batches(start)))

    def poison(number: Any, batch: Any) -> Any:
        images, labels = batch
        return tf.where(number == 8, images * float("nan"), images), labels

    return numbered.map(poison)


def test_a_loss_that_is_no_number_names_step_rate_and_last_state(tmp_path: Path) -> None:
    bad = dataclasses.replace(job(tmp_path), training=poisoned)
    with pytest.raises(UsageError) as error:
        engine.fit(two_layer_model(), None, bad)
    rate = 0.02 * (1 + np.cos(np.pi * 7 / (4 * STEPS))) / 2
    assert str(error.value) == (
        f"loss: got 'nan at step 8 in epoch 2, learning rate {rate:.3g}', expected a finite number;"
        " try `train.lr=0.002` with `overwrite` or another `model_dir`; the last good state is "
        f"{tmp_path / 'state-00001-0000000005'}"
    )
    assert len(states(tmp_path)) == 1


def test_no_state_is_saved_after_a_loss_that_is_no_number(tmp_path: Path) -> None:
    bad = dataclasses.replace(job(tmp_path, checkpoint_minutes=1e-9), training=poisoned)
    with pytest.raises(UsageError, match="nan at step 8"):
        engine.fit(two_layer_model(), None, bad)
    assert states(tmp_path)[-1] == "state-00001-0000000007"


def test_random_layers_draw_by_seed_layer_and_step() -> None:
    """And as many as their rate asks for; after the block they are as they were."""
    source = tf_keras.layers.Input((1000,))
    layers = tf_keras.layers.Dropout(0.25), tf_keras.layers.GaussianNoise(1.0)
    model = tf_keras.Model(source, [layer(source) for layer in layers])
    config, ones, step = model.get_config(), tf.ones((2, 1000)), tf.Variable(0, dtype=tf.int64)

    def draw(seed: int, number: int) -> list[Any]:
        with random_state.drawn_by_step(model, seed, lambda: step):
            step.assign(number)
            return [value.numpy() for value in tf.function(model)(ones, training=True)]

    first, again = draw(3, 5), draw(3, 5)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for seed, number in ((4, 5), (3, 6)):
        for one, other in zip(first, draw(seed, number), strict=True):
            assert (one != other).mean() > 0.3
    assert set(np.unique(first[0])) == {0, np.float32(1 / 0.75)}
    assert (first[0] == 0).mean() == pytest.approx(0.25, abs=0.04)
    assert first[1].std() == pytest.approx(1, abs=0.1)
    assert model.get_config() == config
    assert not np.array_equal(model(ones, training=True)[0], model(ones, training=True)[0])
