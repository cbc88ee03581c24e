"""The parameters of `mobilenet.train` give the config that the trainer's flags give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobilenet import cli
from mobilenet.configs import archs, recipes
from mobilenet.configs.dataset import DIGITS
from mobilenet.configs.pruning import ChannelPruning
from mobilenet.configs.run import STAGES
from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError
from mobilenet.trainer import COMMAND
from mobilenet.training import run_parameters


def config_of(data: Any = "digits", **values: Any) -> Any:
    named = {name: values.pop(name, None) for name in ("model", "weights", "stages")}
    return run_parameters.request(
        data,
        named["model"] or "mobilenet_v1",
        named["weights"],
        named["stages"] or STAGES,
        values,
    ).config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ""),
        ({"model": "mobilenet_v3_small"}, "--model_name=mobilenet_v3_small"),
        ({"data": "cifar10", "data_dir": "sets"}, "--dataset_name=cifar10 --data_dir=sets"),
        ({"data": "imagenet2012"}, "--dataset_name=imagenet2012"),
        ({"weights": "start.keras"}, "--init_checkpoint=start.keras"),
        ({"weights": Path("~/x")}, "--init_checkpoint=~/x"),
        ({"stages": ["train", "convert"]}, "--stages=train,convert"),
        ({"lr": 1, "prune_lr": 0.5, "epochs": 3}, "--lr=1 --prune_lr=0.5 --epochs=3"),
        ({"dropout_rate": 0.25}, "--dropout_rate=0.25"),
        ({"final_sparsity": 0.6}, "--final_sparsity=0.6"),
        ({"final_sparsity": {"stem": 0.6}}, "--final_sparsity=stem=0.6"),
        ({"pruning": "channel", "importance": "taylor"}, "--pruning=channel --importance=taylor"),
        ({"lr_boundaries": [2, 4.5]}, "--lr_boundaries=2,4.5"),
        ({"quantization": "ptq"}, "--quantization=ptq"),
        ({"image_size": 96}, "--image_size=96"),
        ({"image_size": (48, 96), "channels": 1}, "--image_size=48,96 --channels=1"),
        ({"image_size": [48, 96]}, "--image_size=48,96"),
        ({"image_size": (96, 96)}, "--image_size=96"),
        ({"train.op_momentum": 0.8}, "--op_momentum=0.8"),
        ({"model.divisor": 4}, "--override model.divisor=4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parameters_are_those_of_the_flags(values: dict[str, Any], words: str) -> None:
    assert config_of(**values) == cli.run_config(COMMAND.parse(words.split()))


def test_data_are_recognized_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "list.csv").write_text("file,label\n")
    (tmp_path / "records").mkdir()
    (tmp_path / "records/train-00000-of-00001").touch()
    for name, known in (("photos", "image_folder"), ("list.csv", "image_list")):
        words = [f"--dataset_name={known}", f"--data_dir={tmp_path / name}"]
        expected = cli.run_config(COMMAND.parse(words))
        assert config_of(tmp_path / name) == config_of(str(tmp_path / name)) == expected
    assert config_of(tmp_path / "records").dataset.name == "tfrecord"


def test_whole_configs_are_taken_as_they_are() -> None:
    model = archs.get("mobilenet_v2", width_multiplier=0.35)
    data = DIGITS.replace(rotation=0.0)
    train, pruning = TrainConfig(epochs=2), ChannelPruning()
    config = config_of(data, model=model, train=train, pruning=pruning, lr=0.5)
    expected = recipes.get("mobilenet_v2", "digits")
    expected = expected.replace(model=model, dataset=data, pruning=pruning)
    assert config == expected.replace(train=train.replace(lr=0.5))


def test_a_config_takes_the_momentum_of_the_recipe_unless_it_has_one() -> None:
    model = archs.get("mobilenet_v1", width_multiplier=0.5)
    assert config_of("imagenet2012", model=model).model.batch_norm_decay == 0.9997
    model = model.replace(batch_norm_decay=0.9)
    assert config_of("imagenet2012", model=model).model.batch_norm_decay == 0.9


@pytest.mark.parametrize(
    ("model_dir", "folder"),
    [
        (None, Path("runs/mobilenet_v1_digits")),
        ("here", Path("here")),
        (Path("~/run"), Path.home() / "run"),
    ],
)
def test_the_folder_is_that_of_the_command_unless_it_is_given(model_dir: Any, folder: Path) -> None:
    request = run_parameters.request("digits", "mobilenet_v1", None, STAGES, {}, model_dir)
    assert request.folder == folder


def test_a_folder_that_is_no_path_is_refused() -> None:
    with pytest.raises(UsageError, match="model_dir: got 'int', expected a path"):
        run_parameters.request("digits", "mobilenet_v1", None, STAGES, {}, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "values", "num_classes"),
    [
        ("mobilenet_v1", {}, False),
        ("mobilenet_v1", {"num_classes": 10}, True),
        (archs.get("mobilenet_v1"), {}, False),
        (archs.get("mobilenet_v1", num_classes=10), {}, True),
    ],
)
def test_classes_are_those_of_the_data_unless_they_are_set(
    model: Any, values: dict[str, Any], num_classes: bool
) -> None:
    request = run_parameters.request("digits", model, None, STAGES, values)
    assert request.explicit.num_classes == num_classes


@pytest.mark.parametrize(
    ("values", "what", "text"),
    [
        ({"width_multiplyer": 1}, "width_multiplyer", "did you mean width_multiplier?"),
        ({"width_multiplier": 0}, "width_multiplier", "a number above 0"),
        ({"prune_lr": -1}, "prune_lr", "a number above 0"),
        ({"ratio": 0.5}, "ratio", "did you mean channel_ratio?"),
        ({"train.lrr": 1}, "train.lrr", "did you mean train.lr?"),
        ({"epochs": "3"}, "epochs", "a value of type int"),
        ({"flip": "no"}, "flip", "a value of type bool"),
        ({"dropout_rate": 1}, "dropout_rate", "below 1"),
        ({"pruning": "chanel"}, "pruning", "did you mean channel?"),
        ({"pruning": TrainConfig()}, "pruning", "ChannelPruning"),
        ({"importance": "taylor"}, "importance", "pruning channel; magnitude has no such field"),
        ({"stages": "train"}, "stages", 'as in ("train",)'),
        ({"stages": ["train", "purne"]}, "stages", "did you mean prune?"),
        ({"stages": 3}, "stages", "tuple[str, ...]"),
        ({"weights": 3}, "weights", "a path"),
        ({"data": 3}, "data", "the name of a data set"),
        ({"data": "./nowhere"}, "data", "there is no such path"),
        ({"model": "mobilenet_v5"}, "model", "did you mean mobilenet_v"),
        ({"model": object()}, "model", "a saved model, or a tf_keras model"),
        ({"model_name": "mobilenet_v2"}, "model_name", "this value as `model`"),
        ({"dataset": DIGITS}, "dataset", "this value as `data`"),
    ],
)
def test_bad_values_name_the_parameter(values: dict[str, Any], what: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(**values)
    assert caught.value.what == what
    assert text in str(caught.value)
