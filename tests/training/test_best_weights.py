"""The best epoch ends a stage: by top-1, then loss, and only after the method's target."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import short_training  # noqa: E402
import small_models  # noqa: E402
from short_training import CONFIG, STEPS, Recorder, Signal, make_job  # noqa: E402
from small_models import two_layer_model  # noqa: E402

from mobilenet.compression import method as methods  # noqa: E402
from mobilenet.compression.method import Method  # noqa: E402
from mobilenet.configs.pruning import ChannelPruning, MagnitudePruning, TfmotPruning  # noqa: E402
from mobilenet.configs.quantization import QuantizationAwareTraining  # noqa: E402
from mobilenet.metrics import LabelFigures, Metrics  # noqa: E402
from mobilenet.models.graph import variables  # noqa: E402
from mobilenet.training import engine  # noqa: E402
from mobilenet.training.best_weights import BestWeights  # noqa: E402

PLAIN = CONFIG.replace(keep_best=True, ma_decay_rate=0.0)


def test_top1_decides_and_of_equals_the_lower_loss() -> None:
    model = two_layer_model()
    best = BestWeights(model)
    assert best.restore() == 0
    best_epochs = []
    for epoch, (top1, loss) in enumerate([(0, 9), (50, 2), (50, 3), (40, 1), (50, 1), (50, 1)], 1):
        model.set_weights([np.full_like(w, epoch) for w in model.get_weights()])
        best.update_if_better(epoch, Metrics(top1, 100, loss, 9))
        best_epochs.append(int(best.epoch))
    assert best_epochs == [1, 2, 2, 2, 5, 5]
    assert best.restore() == 5
    for weight in model.get_weights():
        np.testing.assert_array_equal(weight, 5)


@pytest.mark.parametrize(
    ("metric", "expected"), [("top1", 3), ("top5", 1), ("loss", 2), ("auc", 4), ("f1", 1)]
)
def test_any_metric_selects(metric: str, expected: int) -> None:
    """The lower loss decides between equals."""
    best = BestWeights(two_layer_model(), metric)
    figures = [(50, 90, 3.0, 0.5, 0.9), (40, 80, 1.0, 0.6, 0.2), (60, 70, 9.0, 0.7, 0.1)]
    for epoch, (top1, top5, loss, auc, f1) in enumerate([*figures, (10, 10, 9.5, 0.8, 0.1)], 1):
        labels = (LabelFigures(1, auc, f1), LabelFigures(1, auc, f1))
        best.update_if_better(epoch, Metrics(top1, top5, loss, 9, labels))
    assert int(best.epoch) == expected


STOPPING = CONFIG.replace(epochs=12, lr=0.3, early_stopping=2, ma_decay_rate=0.0)


@pytest.mark.parametrize("metric", [None, "loss"])
def test_a_stage_ends_after_epochs_without_a_better_one(metric: str | None, tmp_path: Path) -> None:
    config = STOPPING.replace(best_metric=metric)
    model = two_layer_model()
    whole = engine.fit(
        model, None, make_job(tmp_path / "all", config.replace(early_stopping=0, keep_best=True))
    )

    def key(row: Any) -> Any:
        loss = -row["val_loss"]
        return loss if metric == "loss" else (row["val_top1"], loss)

    last = next(
        n
        for n in range(1, 13)
        if n == 12 or max(whole[:n], key=key)["epoch"] <= n - config.early_stopping
    )
    assert 3 <= last < 12
    model, watch = two_layer_model(), Recorder()
    rows = engine.fit(model, None, make_job(tmp_path / "early", config, watch))
    best = max(rows, key=key)["epoch"]
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for row in whole[:last]]
    assert [row["epoch"] for row in rows if row["kept"]] == [best] == [last - 2]
    for weight, then in zip(model.get_weights(), watch.weights[best * STEPS - 1], strict=True):
        np.testing.assert_array_equal(weight, then)
    for step in (last * STEPS - 1, last * STEPS):  # the second is after the last step
        again = two_layer_model()
        folder = tmp_path / str(step)
        with pytest.raises(KeyboardInterrupt):
            engine.fit(again, None, make_job(folder, config, Signal(step)))
        continued = engine.fit(again, None, make_job(folder, config))
        assert [row["val_loss"] for row in continued] == [row["val_loss"] for row in rows]
        for own, expected in zip(again.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(own, expected)


def test_a_stage_does_not_end_before_its_target_is_reached(tmp_path: Path) -> None:
    model = two_layer_model()
    config = STOPPING.replace(epochs=8, lr=1e-30, freeze_batch_norm=True)  # all are equal
    assert len(engine.fit(model, None, make_job(tmp_path / "one", config))) == 3
    method = ClassBiasMethod(model, 4 * STEPS)
    assert len(engine.fit(model, method, make_job(tmp_path / "two", config))) == 6


class ClassBiasMethod(Method):
    """Makes one class of all images from the third epoch on; reaches its target at a given step."""

    config_type = MagnitudePruning

    def __init__(self, model: Any, reached_at: int) -> None:
        super().__init__(None, short_training.stage_context())
        self.kernel, self.reached_at = model.layers[-1].kernel, reached_at

    def after_step(self, model: Any, step: Any) -> None:
        shape = self.kernel.shape
        late = tf.fill(shape, tf.cast(step > 2 * STEPS, tf.float32))
        self.kernel.assign(self.kernel * (1 - late))

    def target_reached(self, step: int) -> bool:
        return step >= self.reached_at


@pytest.mark.parametrize(
    ("reached_at", "candidates"), [(0, (1, 2, 3, 4)), (3 * STEPS, (3, 4)), (9 * STEPS, (4,))]
)
def test_a_stage_ends_with_its_best_epoch_after_the_target(
    tmp_path: Path, reached_at: int, candidates: tuple[int, ...]
) -> None:
    model, watch = two_layer_model(), Recorder()
    rows = engine.fit(model, ClassBiasMethod(model, reached_at), make_job(tmp_path, PLAIN, watch))
    best = max(candidates, key=lambda e: (rows[e - 1]["val_top1"], -rows[e - 1]["val_loss"]))
    assert rows[1]["val_top1"] > rows[2]["val_top1"]  # the first epochs were the better ones
    assert [row["kept"] for row in rows] == [int(epoch == best) for epoch in (1, 2, 3, 4)]
    for weight, then in zip(model.get_weights(), watch.weights[best * STEPS - 1], strict=True):
        np.testing.assert_array_equal(weight, then)


SHARES = {"pointwise": 0.5}
CONFIGS = [
    MagnitudePruning(SHARES, end=0.7, frequency=4),
    TfmotPruning(SHARES, end=0.7, frequency=4),
    ChannelPruning(
        ratio={"all": 0.5}, round_to=1, end=0.7, frequency=3, schedule="polynomial", reconstruct=0
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_pruning_target_is_reached_from_the_step_of_the_final_sparsity(config: Any) -> None:
    """Zeros are counted in the kernel `d`, after each update, as the end of an epoch sees them."""
    steps = 10
    method = methods.create(config, short_training.stage_context(steps))
    model = method.apply(small_models.randomize_batch_norm(small_models.toy()))
    name = next(x.name for x in model.layers if x.name in ("d", "prune_low_magnitude_d"))
    shares: list[float] = []

    def after_update(step: int) -> None:
        shares.append(small_models.zero_fraction(variables.kernel(model.get_layer(name))))
        method.before_step(step)

    method.before_step(0)
    short_training.train(model, method, steps, rate=0.01, watch=after_update)
    final = shares[-1]
    assert final >= 0.5
    first = next(step for step in range(steps + 1) if method.target_reached(step))
    assert [method.target_reached(step) for step in range(first, steps + 1)] == [True] * (
        steps + 1 - first
    )
    assert shares[first - 2] < final
    assert shares[first - 1 :] == [final] * (steps + 1 - first)


def test_the_target_of_quantization_is_reached_once_it_has_begun() -> None:
    def reached(delay: int) -> list[bool]:
        method = methods.create(
            QuantizationAwareTraining(quant_delay=delay), short_training.stage_context()
        )
        return [method.target_reached(step) for step in (1, 4, 5)]

    assert reached(0) == [True, True, True]
    assert reached(4) == [False, False, True]


def test_masks_hold_in_the_best_weights(tmp_path: Path) -> None:
    """The rate falls from far too high, so that epochs differ; only the last two are pruned."""
    config = MagnitudePruning({"classifier": 0.75}, end=0.75, frequency=2)
    method = methods.create(
        config, dataclasses.replace(short_training.stage_context(), steps=4 * STEPS)
    )
    model = method.apply(two_layer_model())
    training = CONFIG.replace(keep_best=True, lr=0.3)
    rows = engine.fit(model, method, make_job(tmp_path, training))
    best_epoch = next(row["epoch"] for row in rows if row["kept"])
    assert best_epoch >= 3
    kernel = model.layers[-1].get_weights()[0]
    assert np.mean(kernel == 0) == pytest.approx(0.75, abs=1 / kernel.size)
