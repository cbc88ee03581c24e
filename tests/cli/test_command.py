"""Flags, from the arguments that are typed to the config that a command gets."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenet import cli, trainer
from mobilenet.cli import flags as cli_flags
from mobilenet.configs import recipes
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.pruning import PRUNING
from mobilenet.configs.quantization import QUANTIZATION
from mobilenet.configs.run import RunConfig
from mobilenet.configs.training import TrainConfig
from mobilenet.errors import UsageError

# The flags of tensorflow/models research/mobilenet/mobilenet_trainer.py, and what they set.
PUBLISHED = {
    "dataset_name": ("dataset.name", "cifar10", "cifar10"),
    "data_dir": ("dataset.data_dir", "/data", "/data"),
    "optimizer_name": ("train.optimizer_name", "sgd", "sgd"),
    "learning_scheduler_name": ("train.learning_scheduler_name", "constant", "constant"),
    "op_momentum": ("train.op_momentum", "0.5", 0.5),
    "op_decay_rate": ("train.op_decay_rate", ".95", 0.95),
    "lr": ("train.lr", "1e-3", 1e-3),
    "lr_decay_rate": ("train.lr_decay_rate", "0.98", 0.98),
    "lr_decay_epochs": ("train.lr_decay_epochs", "3", 3.0),
    "label_smoothing": ("train.label_smoothing", "0.2", 0.2),
    "ma_decay_rate": ("train.ma_decay_rate", "0.999", 0.999),
    "dropout_rate": ("model.dropout_keep_prob", "0.3", 0.7),
    "std_weight_decay": ("model.weight_decay", "1e-5", 1e-5),
    "truncated_normal_stddev": ("model.stddev", "0.01", 0.01),
    "batch_norm_decay": ("model.batch_norm_decay", "0.99", 0.99),
    "batch_size": ("train.batch_size", "16", 16),
    "epochs": ("train.epochs", "7", 7),
}
OURS = {
    "stages": ("stages", "train,prune", ("train", "prune")),
    "image_size": ("image_size", "48,96", (48, 96)),
    "channels": ("channels", "1", 1),
    "width_multiplier": ("model.width_multiplier", "0.25", 0.25),
    "num_classes": ("model.num_classes", "10", 10),
    "init_checkpoint": ("init_checkpoint", "a.keras", "a.keras"),
    "seed": ("seed", "3", 3),
    "distribution_strategy": ("distribution_strategy", "mirrored", "mirrored"),
    "data_service": ("data_service", "host:5000", "host:5000"),
    "mixed_precision": ("mixed_precision", "mixed_bfloat16", "mixed_bfloat16"),
    "prune_lr": ("prune.lr", "0.1", 0.1),
    "quantize_epochs": ("quantize.epochs", "2", 2),
    "lr_boundaries": ("train.lr_boundaries", "1,2.5", (1.0, 2.5)),
}
COMMAND = cli.Command(
    "mobilenet.example",
    "Shows the parts.",
    cli.flag_specs(RunConfig),
    (
        cli.option("model_name", str, "mobilenet_v1", "which model", group="model"),
        cli.option("top_k", int, 5, "how many", short="k"),
        cli.option("overwrite", bool, False, "start anew"),
    ),
    config=RunConfig,
)


def config_of(*args: str) -> RunConfig:
    return cli.run_config(COMMAND.parse(args))


def at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def error_of(*args: str) -> str:
    with pytest.raises(UsageError) as caught:
        config_of(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("flag", [*PUBLISHED, *OURS])
@pytest.mark.parametrize("form", ["equals", "space"])
def test_a_flag_sets_its_field_and_no_other(flag: str, form: str) -> None:
    path, text, expected = (PUBLISHED | OURS)[flag]
    config = config_of(*([f"--{flag}={text}"] if form == "equals" else [f"--{flag}", text]))
    reference = pytest.approx(expected) if isinstance(expected, float) else expected
    assert at(config, path) == reference
    assert type(at(config, path)) is type(expected)
    if flag != "dataset_name":  # which picks another recipe
        plain = recipes.get("mobilenet_v1", "digits")
        changed = {p for p in leaves(config) if at(config, p) != at(plain, p)}
        assert changed == {path}


def leaves(config: Any, prefix: str = "") -> list[str]:
    paths = []
    for name in type(config).__dataclass_fields__:
        value = getattr(config, name)
        inner = hasattr(value, "__dataclass_fields__")
        paths += leaves(value, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return paths


def test_no_flag_is_defined_twice_and_every_path_leads_to_a_field() -> None:
    specs = cli.flag_specs(RunConfig)
    assert len({s.name for s in specs}) == len(specs) == len({s.path for s in specs})
    plain = recipes.get("mobilenet_v1", "digits")
    every = {path for kind in PRUNING.values() for path in leaves(plain.replace(pruning=kind()))}
    every |= {
        path
        for kind in QUANTIZATION.values()
        for path in leaves(plain.replace(quantization=kind()))
    }
    assert {s.path for s in specs} - {"pruning", "quantization"} <= every
    assert cli.flag_specs(RunConfig()) == specs


def test_a_prefix_and_a_choice_of_fields_hold() -> None:
    names = {s.name for s in cli.flag_specs(RunConfig)}
    assert {n for n in names if n.startswith("prune_")} == {
        "prune_epochs",
        "prune_lr",
        "prune_keep_best",
        "prune_early_stopping",
    }
    of_data = cli.flag_specs(DatasetConfig)
    assert {s.path for s in of_data} > {"name", "data_dir"} and {s.group for s in of_data} == {
        "data"
    }


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--flip"], True),
        (["--noflip"], False),
        (["--flip=false"], False),
        (["--flip=True"], True),
        (["--noflip", "--flip"], True),
    ],
)
def test_booleans_are_typed_as_in_absl(args: list[str], expected: bool) -> None:
    assert COMMAND.parse(args).settings == {"dataset.flip": expected}


def test_options_have_defaults_short_names_and_stay_out_of_the_config() -> None:
    parsed = COMMAND.parse(["-k", "3", "--overwrite"])
    assert parsed.options == {"model_name": "mobilenet_v1", "top_k": 3, "overwrite": True}
    assert parsed.settings == {}
    assert set(parsed.typed) == {"top_k", "overwrite"}


def test_arguments_may_be_anywhere_where_the_command_takes_them() -> None:
    command = cli.Command("x", "", extra=[cli.option("top_k", int, 5, "")], arguments="IMAGE...")
    parsed = command.parse(["a.png", "--top_k", "3", "b.png", "--", "--c.png"])
    assert (parsed.arguments, parsed.options) == (["a.png", "b.png", "--c.png"], {"top_k": 3})
    assert "Usage: python -m x [flags] IMAGE..." in command.help()


def test_a_command_without_a_config_has_no_replay_flags() -> None:
    command = cli.Command("x", "", extra=[cli.option("top_k", int, 5, "")])
    assert "config_file" not in command.help(full=True)
    with pytest.raises(UsageError, match="--override: expected a flag of x"):
        command.parse(["--override", "a=1"])


def test_the_last_of_two_wins_and_an_override_wins_over_a_flag() -> None:
    assert config_of("--lr=1", "--lr=2").train.lr == 2
    assert config_of("--override=train.lr=3", "--lr=1").train.lr == 3


def test_overrides_reach_fields_without_a_flag_typed_by_the_field() -> None:
    args = ["--override", "model.classifier_activation=none", "--override", "model.divisor=4"]
    args += ["--override", "model.channels=Conv2d_0=16,Conv2d_1_pointwise=24"]
    model = config_of(*args).model
    assert (model.classifier_activation, model.divisor) == (None, 4)
    assert model.channels == {"Conv2d_0": 16, "Conv2d_1_pointwise": 24}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.75", {"pointwise": 0.75}),
        ("pointwise=0.75,classifier=0.5", {"pointwise": 0.75, "classifier": 0.5}),
        ("Conv2d_(12|13)_.*=0.9", {"Conv2d_(12|13)_.*": 0.9}),
    ],
)
def test_sparsity_is_one_number_or_pairs(text: str, expected: dict[str, float]) -> None:
    assert config_of(f"--final_sparsity={text}").pruning.final_sparsity == expected
    assert config_of(f"--override=pruning.final_sparsity={text}").pruning.final_sparsity == expected


def test_model_and_data_set_pick_the_recipe() -> None:
    config = config_of("--model_name", "mobilenet_v2", "--dataset_name", "imagenet2012", "--lr=1")
    expected = recipes.get("mobilenet_v2", "imagenet2012")
    assert config == expected.replace(train=expected.train.replace(lr=1.0))


def test_a_config_file_replays_and_flags_change_it(tmp_path: Path) -> None:
    first = config_of("--model_name=mobilenet_v3_small", "--lr=0.5", "--stages=train", "--seed=9")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(first.to_json()))
    assert config_of("--config_file", str(path)) == first
    assert config_of(f"--config_file={path}", "--seed=1") == first.replace(seed=1)
    assert config_of(f"--config_file={path}", "--model_name=mobilenet_v3_small") == first
    assert "expected the model that --config_file describes" in error_of(
        f"--config_file={path}", "--model_name=mobilenet_v1"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "expected a JSON object that describes a RunConfig"),
        ("{", "expected a JSON file"),
        ('{"type": "RunConfig", "lr": 1}', "RunConfig field: got 'lr', expected one of model, "),
        ('{"type": "TrainConfig"}', "expected RunConfig or a config derived from it"),
    ],
)
def test_a_wrong_config_file_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    message = error_of(f"--config_file={path}")
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("--lr=abc", "--lr: got 'abc', expected a number"),
        ("--epochs=1.5", "--epochs: got '1.5', expected a whole number"),
        ("--flip=maybe", "--flip: got 'maybe', expected true or false"),
        ("--lr=nan", "--lr: got nan, expected a number above 0"),
        ("--prune_lr=inf", "--prune_lr: got inf, expected a number above 0"),
        ("--quantize_epochs=-1", "--quantize_epochs: got -1, expected a whole number at least 0"),
        ("--batch_size 0", "--batch_size: got 0, expected a whole number at least 1"),
        ("--width_multiplier=0", "--width_multiplier: got 0.0, expected a number above 0"),
        ("--dropout_rate=1", "--dropout_rate: got 1.0, expected a number at least 0 and below 1"),
        (
            "--final_sparsity=1",
            "--final_sparsity pointwise: got 1.0, expected a number at least 0 and",
        ),
        (
            "--override=prune.warmup_epochs=-1",
            "--override prune.warmup_epochs: got -1.0, expected a",
        ),
        ("--override=train.lrr=1", "--override: got 'train.lrr', expected the path of a field"),
        ("--override=train.lrr=1", "did you mean train.lr?"),
        ("--override=train.lr", "expected path.to.field=value"),
        ("--override=train=3", "expected the path of a field of RunConfig"),
        ("--optimizer_name=adm", "did you mean adam?"),
        ("--learning_scheduler_name=cosin", "did you mean cosine?"),
        (
            "--stages=train,prone",
            "--stages: got 'prone', expected one of train, prune, quantize, convert",
        ),
        ("--stages=prune,train", "expected stages in the order train,prune,quantize,convert"),
        ("--stages=", "--stages: got '', expected at least one of train, prune"),
        ("--model_name=mobilenet_v4", "did you mean mobilenet_v"),
        ("--epoch=3", "--epoch: expected a flag of mobilenet.example; did you mean --epochs"),
        ("--learning_rate=3", "did you mean --lr"),
        ("--lr", "Missing value for flag --lr"),
        ("--noflip=3", "does not take an argument"),
        ("picture.png", "mobilenet.example: got 'picture.png', expected flags alone"),
        ("--config_file=/nowhere/run.json", "/nowhere/run.json: expected a JSON file"),
    ],
)
def test_invalid_flags_cost_one_line(args: str, expected: str) -> None:
    assert expected in error_of(*args.split())


def test_another_pruning_method_begins_with_its_own_defaults() -> None:
    assert config_of("--pruning=channel").pruning.schedule == "constant"
    assert config_of("--pruning=dns").pruning.schedule == "polynomial"
    config = config_of("--pruning_schedule=polynomial", "--pruning_end=0.4", "--pruning=channel")
    assert (config.pruning.schedule, config.pruning.end) == ("polynomial", 0.4)


def test_fields_of_one_config_change_together() -> None:
    """Rules between two fields see both: each of these alone would break one."""
    settings = {"pruning.begin": 0.7, "pruning.end": 0.9}
    assert cli.apply_overrides(RunConfig(), settings).pruning.begin == 0.7
    with pytest.raises(UsageError, match="--pruning_end: got 0.6, expected a share above"):
        cli.apply_overrides(RunConfig(), {"pruning.begin": 0.7})


def test_overrides_leave_the_old_config_alone_and_name_a_wrong_path() -> None:
    old = RunConfig()
    assert cli.apply_overrides(old, {"train.lr": 0.5}).train == TrainConfig(lr=0.5)
    assert old == RunConfig()
    with pytest.raises(UsageError, match="did you mean train"):
        cli.apply_overrides(old, {"trian.lr": 0.5})


@pytest.mark.parametrize(
    ("typed", "trained_on", "expected"),
    [((), "", "digits"), ((), "cifar10", "cifar10"), (("--dataset_name=mnist",), "", "mnist")],
)
def test_the_data_set_is_typed_or_the_models_own_else_the_digits_with_a_warning(
    caplog: pytest.LogCaptureFixture, typed: tuple[str, ...], trained_on: str, expected: str
) -> None:
    command = cli.Command("test", "Tests.", cli.flag_specs(DatasetConfig))
    with caplog.at_level(logging.WARNING, "mobilenet"):
        config = cli.dataset_of(command.parse(list(typed)), trained_on)
    assert config.name == expected
    assert ("names no data set" in caplog.text) == (not typed and not trained_on)


DATA = cli.Command("test", "Tests.", cli.flag_specs(DatasetConfig))


@pytest.fixture
def photo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The export folder of a run on `photos`, both in the folder in which the run was started."""
    started_in, elsewhere = tmp_path / "started", tmp_path / "elsewhere"
    model = started_in / "runs/photos/export"
    for folder in (model, started_in / "photos", elsewhere):
        folder.mkdir(parents=True)
    config = recipes.get("mobilenet_v1", "image_folder")
    dataset = config.dataset.replace(data_dir="photos", skip_corrupt=True)
    run = config.replace(dataset=dataset)
    (model.parent / "config.json").write_text(json.dumps(run.to_json()))
    environment = json.dumps({"folder": str(started_in)})
    (model.parent / "environment.json").write_text(environment)
    (model / "model.tflite").touch()
    monkeypatch.chdir(started_in)
    return model


def test_without_flags_the_data_are_those_of_the_models_run(
    photo_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (photo_model, "runs/photos/export", photo_model / "model.tflite"):
        config = cli.dataset_of(DATA.parse(["--max_pixels=9"]), "image_folder", model)
        assert (config.name, config.data_dir) == ("image_folder", "photos")
        assert (config.skip_corrupt, config.max_pixels) == (True, 9)
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "those of photos, as in the model's run" in err
    monkeypatch.chdir("../elsewhere")
    config = cli.dataset_of(DATA.parse([]), "image_folder", photo_model)
    assert config.data_dir == str(photo_model.parents[2] / "photos")


def test_data_that_are_typed_take_nothing_from_the_run(
    photo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cli.dataset_of(DATA.parse(["--data_dir=other"]), "image_folder", photo_model)
    assert (config.data_dir, config.skip_corrupt) == ("other", False)
    config = cli.dataset_of(DATA.parse(["--dataset_name=mnist"]), "image_folder", photo_model)
    assert (config.name, config.data_dir) == ("mnist", None)
    assert cli.dataset_of(DATA.parse([]), "cifar10", photo_model).data_dir is None
    assert capsys.readouterr().err == ""


def test_images_that_cannot_be_known_are_asked_for(photo_model: Path) -> None:
    asked = "data_dir: {}expected the class folders that this model was trained on; {}"
    (photo_model.parents[2] / "photos").rmdir()
    expected = asked.format("got 'photos', ", "there is no such path; give that folder")
    with pytest.raises(UsageError) as gone:
        cli.dataset_of(DATA.parse([]), "image_folder", photo_model)
    assert str(gone.value) == expected
    config = photo_model.parent / "config.json"
    for text in ("{", "[]", '{"dataset": 3}', None):
        config.unlink() if text is None else config.write_text(text)
        with pytest.raises(UsageError) as unknown:
            cli.dataset_of(DATA.parse([]), "image_folder", photo_model)
        assert str(unknown.value) == asked.format("", "give that folder")
    with pytest.raises(UsageError, match="the records that this model was trained on"):
        cli.dataset_of(DATA.parse([]), "tfrecord")


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.booleans())
def test_values_survive_conversion_to_text(number: float, whole: int, truth: bool) -> None:
    assert cli_flags.parse("x", float, str(number)) == number
    assert cli_flags.parse("x", int, str(whole)) == whole
    assert cli_flags.parse("x", bool, str(truth)) is truth
    assert cli_flags.parse("x", tuple[float, ...], f"{number}, {whole}") == (number, float(whole))
    assert cli_flags.parse("x", int | None, str(whole)) == whole
    assert cli_flags.parse("x", dict[str, float], f"a={number}") == {"a": number}


@given(st.text(max_size=12))
def test_no_text_makes_a_number_parser_fail_otherwise(text: str) -> None:
    for kind in (int, float, bool, tuple[int, int], dict[str, int], float | None):
        try:
            cli_flags.parse("x", kind, text)
        except UsageError as error:
            assert str(error).startswith("x: got")


def test_help_is_short_and_helpfull_is_whole() -> None:
    short, full = COMMAND.help(), COMMAND.help(full=True)
    for name in ("model_name", "lr", "final_sparsity", "overwrite", "config_file", "helpfull"):
        assert f"--{name}" in short
    assert "--op_decay_rate" not in short
    for spec in COMMAND.flags():
        assert f"--{spec.name}" in full or f"--[no]{spec.name}" in full
    positions = [full.index(f"\n{group}:") for group in cli.GROUPS]
    assert positions == sorted(positions)
    assert "recipe" in short


# The flags of the commands that take a path, by their help texts.
PATHS = {
    "trainer": {
        *("config_file", "data_dir", "distill", "init_checkpoint", "model", "model_dir", "sweep"),
    },
    "evaluator": {"data_dir", "labels", "model", "output"},
    "converter": {
        *(
            "calibration_dataset",
            "calibration_dir",
            "data_dir",
            "fitted",
            "labels",
            "model",
            "output",
        ),
    },
    "predict": {"data_dir", "labels", "model"},
    "profiler": {"against", "data_dir", "histograms", "overlay"},
    "packer": {"data_dir"},
    "data.__main__": {"data_dir", "output"},
    "tf1_loader.__main__": {"checkpoint", "output"},
}


@pytest.mark.parametrize("command", PATHS)
def test_the_home_folder_is_expanded_in_every_path_and_nowhere_else(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    flags = importlib.import_module(f"mobilenet.{command}").COMMAND
    expanded = set()
    for spec in flags.flags():
        if spec.type in (str, str | None, Path, Path | None):
            text = cli_flags.parse(f"--{spec.name}", spec.type, "~/x")
            expanded |= {spec.name} if text == "/home/me/x" else set()
            assert text in ("/home/me/x", "~/x")
            assert cli_flags.parse(f"--{spec.name}", spec.type, "a/~/x~") == "a/~/x~"
    assert expanded == PATHS[command]


def test_the_home_folder_is_expanded_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parsed = trainer.COMMAND.parse(
        ["--model_dir=~/run", "--data_dir", "~/d", "--override", "distillation.teacher=~/model"]
    )
    assert parsed.options["model_dir"] == f"{tmp_path}/run"
    config = cli.run_config(parsed)
    assert config.dataset.data_dir == f"{tmp_path}/d"
    assert config.distillation.teacher == f"{tmp_path}/model"
    stored = config.replace(init_checkpoint="~/stored")
    (tmp_path / "config.json").write_text(json.dumps(stored.to_json()))
    again = cli.run_config(trainer.COMMAND.parse(["--config_file=~/config.json"]))
    assert again == stored  # what a file holds stays as it is


@pytest.mark.parametrize(
    "name", ["trainer", "evaluator", "converter", "profiler", "packer", "predict"]
)
def test_every_command_that_reads_images_can_leave_their_orientation(name: str) -> None:
    command = importlib.import_module(f"mobilenet.{name}").COMMAND
    chosen = {"--exif": True, "--noexif": False, "--exif=no": False}
    for word, expected in chosen.items():
        parsed = command.parse([word])
        values = {**parsed.settings, **parsed.options}
        assert [values[path] for path in ("dataset.exif", "exif") if path in values] == [expected]
    assert "--[no]exif" in command.help(full=True)
    parsed = command.parse([])
    assert not parsed.settings and parsed.options.get("exif") is None
