"""Which recipe a run has its defaults from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mobilenet
from mobilenet import cli, trainer
from mobilenet.configs import dataset, recipes
from mobilenet.configs.own_model import OwnModel
from mobilenet.configs.run import FINE_TUNE, FROM_SCRATCH, RunConfig
from mobilenet.errors import UsageError
from mobilenet.training import run_parameters

STAGES = ("train", "prune")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos/cat").mkdir(parents=True)
    return tmp_path / "photos"


def of_flags(*flags: str) -> RunConfig:
    return cli.run_config(trainer.COMMAND.parse([*flags, "--stages=train,prune"]))


def of_call(data: Path | str, **values: Any) -> RunConfig:
    model, weights = values.pop("model", "mobilenet_v1"), values.pop("weights", None)
    return run_parameters.request(data, model, weights, STAGES, values).config


@pytest.mark.parametrize(
    ("flags", "values", "expected"),
    [
        ((), {}, FROM_SCRATCH),
        (("--init_checkpoint=imagenet",), {"weights": "imagenet"}, FINE_TUNE),
        (
            ("--init_checkpoint=imagenet", "--recipe=from_scratch"),
            {"weights": "imagenet", "recipe": "from_scratch"},
            FROM_SCRATCH,
        ),
    ],
)
def test_photos_are_fine_tuned_on_where_there_are_weights(
    flags: tuple[str, ...], values: dict[str, Any], expected: str, photos: Path
) -> None:
    config = of_flags("--dataset_name=image_folder", f"--data_dir={photos}", *flags)
    assert config == of_call(photos, **values)
    assert recipes.name_of(config) == expected
    recipe = recipes.get("mobilenet_v1", "image_folder", expected)
    assert (config.train, config.prune, config.quantize) == (
        *(recipe.train, recipe.prune, recipe.quantize),
    )
    assert config.train.lr == {FROM_SCRATCH: 2e-3, FINE_TUNE: 1e-3}[expected]


@pytest.mark.parametrize("data", ["digits", "imagenet2012", "tfrecord"])
def test_other_data_have_one_recipe_with_and_without_weights(data: str) -> None:
    with_weights = recipes.get("mobilenet_v2", data, has_weights=True)
    assert with_weights == recipes.get("mobilenet_v2", data)
    assert recipes.get("mobilenet_v2", data, FINE_TUNE) != with_weights


def test_a_model_of_the_users_own_is_fine_tuned() -> None:
    config = recipes.of_own_model(OwnModel("cats.keras"), "image_folder")
    assert recipes.name_of(config) == FINE_TUNE
    assert config.train == recipes.get("mobilenet_v2", "image_folder", FINE_TUNE).train
    config = recipes.of_own_model(OwnModel("cats.keras"), "image_folder", FROM_SCRATCH)
    assert config.train == recipes.get("mobilenet_v2", "image_folder").train


def test_random_weights_are_not_fine_tuned(photos: Path) -> None:
    with pytest.raises(UsageError) as caught:
        of_call(photos, recipe="fine_tune")
    assert str(caught.value) == (
        "recipe: got 'fine_tune', expected from_scratch or modern for a model with random weights; "
        "give `init_checkpoint`"
    )
    with pytest.raises(UsageError, match="recipe: got 'fine_tuning'.*did you mean fine_tune"):
        of_call(photos, recipe="fine_tuning", weights="imagenet")


def test_the_modern_recipe_is_timms() -> None:
    """Values of mnv4_cs_r224_e2400: opt_betas, weight_decay, drop, smoothing, reprob, aa, scale."""
    config = recipes.get("mobilenet_v1", "imagenet2012", "modern")
    train, images, model = config.train, config.dataset, config.model
    assert (train.optimizer_name, train.op_momentum, train.decoupled_weight_decay) == (
        *("adamw", 0.6, 0.06),
    )
    assert (train.learning_scheduler_name, train.warmup_epochs) == ("cosine", 5)
    assert train.lr == pytest.approx(0.002 * (train.batch_size / 4096) ** 0.5)
    assert (train.label_smoothing, train.ma_decay_rate, train.random_erasing) == (
        0.1,
        0.99995,
        0.25,
    )
    assert (images.rand_augment, images.rand_augment_magnitude, images.area_min) == (2, 8, 0.08)
    assert (images.train_interpolation, images.color) == ("random", 0)
    assert (model.dropout_keep_prob, model.weight_decay, config.image_size) == (0.75, 0, 224)
    assert recipes.get("mobilenet_v4_conv_medium", "imagenet2012", "modern").image_size == 256


def test_the_modern_recipe_varies_the_images_of_a_call_as_of_the_command(photos: Path) -> None:
    config = of_call(photos, recipe="modern", epochs=3)
    flags = ("--recipe=modern", "--epochs=3")
    assert config == of_flags("--dataset_name=image_folder", f"--data_dir={photos}", *flags)
    assert (config.dataset.rand_augment, config.train.epochs) == (2, 3)
    own = dataset.FOLDER.replace(data_dir=str(photos), rand_augment=1, exif=False)
    images = run_parameters.request(
        own, "mobilenet_v1", None, STAGES, {"recipe": "modern"}
    ).config.dataset
    assert (images.rand_augment, images.exif, images.area_min) == (1, False, 0.08)


@pytest.mark.slow
def test_the_modern_recipe_trains(tmp_path: Path) -> None:
    run = mobilenet.train(
        "digits",
        model="mobilenet_v2",
        recipe="modern",
        stages=("train",),
        epochs=1,
        width_multiplier=0.25,
        image_size=32,
        model_dir=tmp_path / "run",
    )
    assert run.config.dataset.rand_augment == 2
    assert 2 < run.report["train"].history[0]["loss"] < 8  # of four steps
