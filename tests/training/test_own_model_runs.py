"""Runs of the stages on a model of the user's own, from its file to the int8 one."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import run_command
from PIL import Image

tf_keras = pytest.importorskip("tf_keras")
from small_models import SIZE, L, own_model, tutorial_model, zero_fraction  # noqa: E402

from mobilenet import api, trainer  # noqa: E402
from mobilenet.configs.card import Card  # noqa: E402
from mobilenet.configs.pruning import ChannelPruning  # noqa: E402
from mobilenet.configs.run import RunConfig  # noqa: E402
from mobilenet.errors import UsageError  # noqa: E402
from mobilenet.loading import load_model  # noqa: E402
from mobilenet.predict import open_classifier  # noqa: E402
from mobilenet.tflite import model as flatbuffer  # noqa: E402
from mobilenet.training import engine, resume, stage_data  # noqa: E402
from mobilenet.training.training_run import TrainingRun  # noqa: E402

COLORS = ("blue", "green", "red")
SHORT: dict[str, Any] = {
    **dict.fromkeys(("epochs", "prune_epochs", "quantize_epochs"), 1),
    **dict.fromkeys(("color", "ma_decay_rate"), 0.0),
    "area_min": 1.0,
    "distill": "none",
}


def images_of(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise that is brighter in the channel of its class, uint8 `[count, 16, 16, 3]`; classes."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = draw.integers(0, 120, (count, SIZE, SIZE, 3))
    pixels[np.arange(count), :, :, 2 - labels] += 100
    return pixels.astype(np.uint8), labels


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, 96 images to train on and 24 held out."""
    root = tmp_path_factory.mktemp("colors")
    for split, count in (("train", 96), ("val", 24)):
        for number, (pixels, label) in enumerate(zip(*images_of(count, count), strict=True)):
            path = root / split / COLORS[label] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model that tells the colors apart, by pixels alone."""
    model = tutorial_model()
    model.compile(tf_keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    pixels, labels = images_of(96, seed=2)
    model.fit(pixels.astype(np.float32), labels, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def saved(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "colors.keras"
    trained.save(path)
    return path


@pytest.fixture(scope="module")
def run(saved: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    folder = tmp_path_factory.mktemp("chain") / "run"
    stages = ("prune", "quantize", "convert")
    return api.train(photos, model=saved, stages=stages, model_dir=folder, **SHORT)


def test_the_chain_starts_from_the_model_and_keeps_its_accuracy(run: TrainingRun) -> None:
    """Inputs of another range than pixels would end at a third."""
    assert [str(report.part) for report in run.report] == ["prune", "quantize", "convert"]
    assert all(report.top1 > 90 for report in run.report)
    line = re.search(r"colors: top-1 (.*) % on the test", (run.folder / "log.txt").read_text())
    assert line is not None and float(line[1]) > 90
    pruned = run.model("prune")
    names = [layer.name for layer in pruned.layers if isinstance(layer, L.Conv2D)]
    shares = [zero_fraction(pruned.get_layer(name).kernel) for name in names]
    assert shares[0] < 0.1 and shares[1:] == pytest.approx([0.5, 0.5], abs=0.02)  # not the stem


def test_config_and_cards_have_what_is_known_of_the_model(run: TrainingRun, saved: Path) -> None:
    config = RunConfig.from_file(run.folder / "config.json")
    assert config == run.config
    assert (config.model.name, config.model.path) == ("colors", str(saved))
    assert (config.image_size, config.channels, config.activation) == (SIZE, 3, "softmax")
    assert config.preprocessing.name == "raw"
    for stage in ("initial_model", "prune", "quantize", "export"):
        card = Card.from_file(run.folder / stage / "card.json")
        assert (card.architecture, card.labels, card.outputs) == ({}, COLORS, "logits")
        assert (card.activation, card.input_shape) == ("softmax", (SIZE, SIZE, 3))
        assert any("does not state its crop" in note for note in card.notes)
    assert load_model(run.folder / "initial_model").card.preprocessing.is_identity


@pytest.mark.parametrize("stage", ["prune", "quantize", "export"])
def test_stages_are_evaluated_and_predict(stage: str, run: TrainingRun, photos: Path) -> None:
    part = "convert" if stage == "export" else stage
    found = api.evaluate(run.folder / stage, photos)
    assert found.top1 == pytest.approx(run.report[part].top1, abs=0.01)
    classifier = open_classifier(str(run.folder / stage))
    for color in COLORS:
        photo = next((photos / "val" / color).iterdir())
        assert classifier.top_k(photo, 1)[0][0] == color


def test_shown_test_images_have_the_names_of_their_files(run: TrainingRun, photos: Path) -> None:
    """Pixels are those of the file but for the crop, so no other file is as similar."""
    scored = stage_data.load_scored(run.folder, "convert")
    assert scored is not None
    assert len(scored.names) == len(scored.pixels) == 48
    every = {str(path.relative_to(photos)): Image.open(path) for path in photos.glob("val/*/*")}
    contents = {name: np.asarray(image, np.float32) for name, image in every.items()}
    for name, pixels in zip(scored.names, scored.pixels, strict=True):
        distances = {other: np.abs(pixels - own).mean() for other, own in contents.items()}
        assert min(distances, key=lambda other: distances[other]) == name
    assert 'title="val/blue/21.png"><bdi>21.png<' in (run.folder / "report.html").read_text()


def test_a_finished_run_is_recognized_without_the_file(run: TrainingRun, photos: Path) -> None:
    stages = ("prune", "quantize", "convert")
    absent = Path("nowhere/colors.keras")
    again = api.train(photos, model=absent, stages=stages, model_dir=run.folder, **SHORT)
    assert again.is_unchanged and again.config == run.config
    with pytest.raises(UsageError, match=r"model: got 'nowhere/other.keras', .* nothing there"):
        api.train(photos, model="nowhere/other.keras", model_dir=run.folder, **SHORT)


def test_a_file_of_other_content_is_refused(run: TrainingRun, photos: Path, tmp_path: Path) -> None:
    tutorial_model().save(tmp_path / "colors.keras")
    with pytest.raises(UsageError, match="has started from; this one has another content"):
        api.train(photos, model=tmp_path / "colors.keras", model_dir=run.folder, **SHORT)


@pytest.mark.slow
def test_a_run_continues_without_the_file(
    saved: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = Path(shutil.copy(saved, tmp_path / "mine.keras"))
    flags = {**SHORT, "prune_epochs": 2, "model": path, "model_dir": tmp_path / "run"}
    save = resume.Checkpoints.save

    def save_and_stop(self: Any, *args: Any) -> None:
        save(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            api.train(photos, stages=("prune",), **flags)
    path.unlink()
    with caplog.at_level(logging.INFO, "mobilenet"):
        done = api.train(photos, stages=("prune",), **flags)
    assert "prune: continues after epoch 1 of 2" in caplog.messages
    assert done.report["prune"].top1 > 90


def test_a_model_in_memory_is_fine_tuned_and_recognized(
    trained: Any, photos: Path, tmp_path: Path
) -> None:
    before = trained.get_weights()
    flags = {**SHORT, "stages": ("train",), "model_dir": tmp_path / "run"}
    done = api.train(photos, model=trained, **flags)
    assert (done.config.model.name, done.config.model.path) == ("tutorial", None)
    assert done.report["train"].top1 > 90
    norms = [
        next(x.momentum for x in model.layers if isinstance(x, L.BatchNormalization))
        for model in (trained, done.model())
    ]
    assert norms == [0.99, 0.9]  # in three steps 0.99 would forget nothing
    for weights, original in zip(trained.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, original)
    copied = tf_keras.models.clone_model(trained)  # of other layer names
    copied.set_weights(before)
    assert api.train(photos, model=copied, **flags).is_unchanged
    copied.set_weights([0.5 * weights for weights in before])
    with pytest.raises(UsageError, match="this one has another content"):
        api.train(photos, model=copied, **flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        *({"pruning": "magnitude"}, {"pruning": "dns"}, {"pruning": "channel", "round_to": 1}),
        *({"quantization": "qat"}, {"quantization": "ptq"}),
        *({"quantization": "codebook"}, {"quantization": "linear"}),
    ],
    ids=lambda method: next(iter(method.values())),
)
def test_mixed_precision_ends_in_float32_and_in_the_same_kind_of_file(
    method: dict[str, Any], saved: Path, photos: Path, tmp_path: Path
) -> None:
    """Kernels are not rounded to 16 bits; files have the types of those of other runs."""
    stage = "prune" if "pruning" in method else "quantize"
    flags = {**SHORT, "mixed_precision": "mixed_bfloat16", **method}
    stages = ("train", stage, "convert")
    done = api.train(photos, model=saved, model_dir=tmp_path / "run", stages=stages, **flags)
    for name in ("train", stage):
        plain = load_model(done.folder / name / "model.keras").model
        assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
        assert {weight.dtype.name for weight in plain.weights} == {"float32"}
    assert done.report["train"].top1 > 90
    kernel = plain.layers[-1].kernel.numpy()
    assert (kernel.view(np.uint32) & 0xFFFF).any()  # the bits that bfloat16 does not have
    file = flatbuffer.read(done.file)
    is_int8 = method.get("quantization") in ("qat", "ptq")
    line = f"{stage}: computes in float32, not in mixed_bfloat16"
    assert (line in (done.folder / "log.txt").read_text()) == is_int8
    types = {tensor.dtype for tensor in file.tensors}
    assert types == ({"int8", "int32"} if is_int8 else {"float32", "int32"})
    # Two of the 24 images: the stage is scored in 16 bits.
    assert done.report["convert"].top1 == pytest.approx(done.report[stage].top1, abs=9)


@pytest.mark.slow
def test_rounds_of_channel_pruning_refer_to_the_model_before(
    saved: Path, photos: Path, tmp_path: Path
) -> None:
    """Three quarters of 16 channels by two equal rounds: 10 are left, then 4."""
    pruning = ChannelPruning(ratio={"pointwise": 0.75}, stages=2, round_to=1, reconstruct=0)
    flags = {**SHORT, "pruning": pruning, "stages": ("prune",)}
    done = api.train(photos, model=saved, model_dir=tmp_path / "run", **flags)
    widths = []
    for part in ("prune_1", "prune"):
        model = load_model(done.folder / part).model
        widths.append([x.filters for x in model.layers if isinstance(x, L.Conv2D)][-1])
    assert widths == [10, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        *({"pruning": "dns"}, {"pruning": "tfmot"}, {"quantization": "codebook"}),
        *({"quantization": "ptq"}, {"quantization": "linear"}, {"distill": "start"}),
    ],
    ids=lambda method: next(iter(method.values())),
)
def test_methods_take_the_model(
    method: dict[str, str], saved: Path, photos: Path, tmp_path: Path
) -> None:
    flags = {**SHORT, **method, "stages": ("prune", "quantize", "convert")}
    done = api.train(photos, model=saved, model_dir=tmp_path / "run", **flags)
    assert all(report.top1 > 60 for report in done.report)  # chance is a third


@pytest.mark.slow
def test_a_nested_model_of_keras_applications_goes_through_all_stages(
    photos: Path, tmp_path: Path
) -> None:
    base = own_model("nested_v2").layers[-4]
    base.trainable = True
    inputs = L.Input((32, 32, 3))
    x = tf_keras.applications.mobilenet_v2.preprocess_input(inputs)
    x = L.Dropout(0.2)(L.GlobalAveragePooling2D()(base(x, training=False)))
    tf_keras.Model(inputs, L.Dense(3, activation="softmax")(x)).save(tmp_path / "v2.keras")
    flags = {**SHORT, "epochs": 6, "lr": 1e-3}
    done = api.train(photos, model=tmp_path / "v2.keras", model_dir=tmp_path / "run", **flags)
    assert [str(report.part) for report in done.report] == ["train", *run_stages()]
    assert done.report["train"].top1 > 60
    assert done.config.preprocessing.name == "raw"
    norms = [x for x in done.model("train").layers if isinstance(x, L.BatchNormalization)]
    before = [x for x in base.layers if isinstance(x, L.BatchNormalization)]
    for norm, original in zip(norms, before, strict=True):  # called with training=False
        np.testing.assert_array_equal(norm.moving_mean, original.moving_mean)


def run_stages() -> tuple[str, ...]:
    return ("prune", "quantize", "convert")


def variant(name: str, folder: Path) -> Path:
    """A saved model that does not fit the photos."""
    inputs = L.Input((SIZE, SIZE, 3))
    pooled = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(inputs))
    models = {
        "seven": lambda: tutorial_model(classes=7),
        "one": lambda: tutorial_model(classes=1, activation="sigmoid"),
        "four_channels": lambda: tutorial_model(channels=4),
        "map": lambda: tf_keras.Model(inputs, L.Conv2D(3, 1)(inputs)),
        "two": lambda: tf_keras.Model(inputs, [L.Dense(3)(pooled), L.Dense(3)(pooled)]),
    }
    models[name]().save(folder / f"{name}.keras")
    return folder / f"{name}.keras"


@pytest.mark.parametrize(
    ("name", "flags", "parts"),
    [
        ("colors", ["--width_multiplier=0.5"], ["--width_multiplier: got 0.5", "--model", "leave"]),
        ("colors", ["--dropout_rate=0.5"], ["--dropout_rate: got 0.5", "with --model"]),
        ("colors", ["--init_checkpoint=x.keras"], ["--init_checkpoint: got 'x.keras'", "--model"]),
        ("colors", ["--model_name=mobilenet_v2"], ["--model_name: got 'mobilenet_v2'", "--model"]),
        ("colors", ["--image_size=32"], ["--image_size: got 32, expected 16 x 16"]),
        ("colors", ["--channels=1"], ["--channels: got 1, expected 3"]),
        ("colors", ["--activation=sigmoid"], ["--activation: got 'sigmoid', expected softmax"]),
        ("seven", [], ["--model: got 'seven with 7 outputs'", "expected 3", "blue, green, red"]),
        ("one", [], ["--model: got 'one with 1 outputs'", "expected 3"]),
        ("four_channels", [], ["--model: got '4 channels'", "1 or 3"]),
        ("map", [], ["--model: got 'outputs [16, 16, 3]'", "a classifier"]),
        ("two", [], ["--model: got 'outputs [3], [3]'", "a classifier"]),
        ("none", [], ["--model: got", "there is nothing there"]),
    ],
)
def test_what_does_not_fit_is_one_line(
    name: str,
    flags: list[str],
    parts: list[str],
    saved: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    models = {"colors": saved, "none": Path("none.keras")}
    path = models.get(name) or variant(name, tmp_path)
    data = ["--dataset_name=image_folder", f"--data_dir={photos}", "--model_dir=run"]
    with pytest.raises(UsageError) as caught:
        trainer.run([f"--model={path}", *data, *flags])
    for part in parts:
        assert part in str(caught.value)
    assert not Path("run").exists()


def test_other_inputs_than_in_training_are_warned_of(
    saved: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "fit", stop)
    flags = {**SHORT, "stages": ("prune",), "preprocessing": "inception"}
    with pytest.raises(KeyboardInterrupt):
        api.train(photos, model=saved, model_dir=tmp_path / "run", **flags)
    config = RunConfig.from_file(tmp_path / "run/config.json")
    assert config.preprocessing.name == "inception"
    assert any("hardly better than chance (33.33 %)" in line for line in caplog.messages)


def test_classes_of_other_names_are_refused(run: TrainingRun, tmp_path: Path) -> None:
    """The model of a stage knows its classes."""
    for split, count in (("train", 12), ("val", 2)):
        for color in ("blue", "green", "white"):
            (tmp_path / split / color).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(images_of(1, number)[0][0])
                image.save(tmp_path / split / color / f"{number}.png")
    with pytest.raises(UsageError, match=r"prune of the classes blue, green, red'.*white"):
        api.train(tmp_path, model=run.folder / "prune", model_dir=tmp_path / "run", **SHORT)


def test_the_command_is_the_same_run(run: TrainingRun, saved: Path, photos: Path) -> None:
    settings = [f"--{name}={value}" for name, value in SHORT.items()]
    data = ["--dataset_name=image_folder", f"--data_dir={photos}", f"--model_dir={run.folder}"]
    stages = "--stages=prune,quantize,convert"
    done = run_command("trainer", f"--model={saved}", stages, *data, *settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "prune: finished before, top-1 " in done.stdout
    replayed = [f"--config_file={run.folder / 'config.json'}", f"--model_dir={run.folder}"]
    assert run_command("trainer", *replayed).returncode == 0
    config = json.loads((run.folder / "config.json").read_text())
    assert config["model"]["type"] == "OwnModel"


def test_a_model_of_open_size_takes_that_of_the_run(photos: Path, tmp_path: Path) -> None:
    inputs = L.Input((None, None, 3))
    pooled = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(L.Rescaling(1 / 255)(inputs)))
    model = tf_keras.Model(inputs, L.Dense(3)(pooled), name="open")
    flags = {**SHORT, "stages": ("convert",), "image_size": (16, 24)}
    done = api.train(photos, model=model, model_dir=tmp_path / "run", **flags)
    assert load_model(tmp_path / "run/initial_model").model.input_shape == (None, 16, 24, 3)
    assert done.file is not None and done.config.activation == "softmax"
