"""Which recipe a run has its defaults from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobilenet import cli, trainer
from mobilenet.configs import recipes
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
